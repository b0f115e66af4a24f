//! Texts side by side, while they are being written.

use crate::terminal;
use anstyle::{AnsiColor, Style};
use anyhow::Result;
use console::Term;
use std::fmt::Write;
use std::io::IsTerminal;

/// Between two panes.
const GAP: usize = 2;
/// Narrower panes are put one below the other.
const NARROWEST: usize = 24;

/// One text with its title.
pub(super) struct Pane {
    pub(super) title: String,
    pub(super) text: String,
}

/// Shows panes, two in a row: again and again in one place on a terminal; elsewhere only when they
/// are complete.
pub(super) struct Panes {
    terminal: Option<Term>,
    /// Lines that stand on the terminal.
    shown: usize,
}

/// The base has none of the adapters' colours.
const COLORS: [Option<AnsiColor>; 4] =
    [None, Some(AnsiColor::Cyan), Some(AnsiColor::Yellow), Some(AnsiColor::Magenta)];

impl Panes {
    pub(super) fn new() -> Panes {
        let terminal = std::io::stdout().is_terminal().then(Term::stdout);
        Panes { terminal: terminal.filter(|terminal| terminal.features().is_attended()), shown: 0 }
    }

    /// Whether somebody watches.
    pub(super) fn is_live(&self) -> bool {
        self.terminal.is_some()
    }

    /// Shows what there is of the texts, their ends where not all of it has room.
    pub(super) fn show(&mut self, panes: &[Pane]) -> Result<()> {
        let Some(terminal) = &self.terminal else { return Ok(()) };
        let rows = usize::from(terminal.size().0);
        let lines = layout(panes, terminal::columns(), Some(rows.saturating_sub(2)));
        self.replace(&lines)
    }

    /// Shows the texts whole.
    pub(super) fn finish(&mut self, panes: &[Pane]) -> Result<()> {
        self.replace(&layout(panes, terminal::columns(), None))?;
        self.shown = 0;
        Ok(())
    }

    fn replace(&mut self, lines: &[String]) -> Result<()> {
        if let Some(terminal) = &self.terminal {
            terminal.clear_last_lines(self.shown)?;
        }
        self.shown = lines.len();
        terminal::print(&(lines.join("\n") + "\n"))
    }
}

/// The lines of all panes; at most `room` of them.
fn layout(panes: &[Pane], columns: usize, room: Option<usize>) -> Vec<String> {
    let side_by_side = columns >= 2 * NARROWEST + GAP;
    let width = if side_by_side { (columns - GAP) / 2 } else { columns };
    let in_a_row = if side_by_side { 2 } else { 1 };
    let stacked = panes.len().div_ceil(in_a_row).max(1);
    // A title, and an empty line below.
    let height = room.map(|room| (room / stacked).saturating_sub(2).max(1));

    let mut lines = Vec::new();
    for (number, row) in panes.chunks(in_a_row).enumerate() {
        let wrapped: Vec<Vec<String>> =
            row.iter().map(|pane| last(wrap(&pane.text, width), height)).collect();
        let tallest = wrapped.iter().map(Vec::len).max().unwrap_or(0);
        let styles = COLORS.iter().cycle().skip(number * in_a_row);
        let titles = row.iter().map(|pane| pane.title.as_str());
        lines.push(beside(titles, styles.clone().map(|color| style(*color).bold()), width));
        for line in 0..tallest {
            let texts = wrapped.iter().map(|text| text.get(line).map_or("", String::as_str));
            lines.push(beside(texts, styles.clone().map(|color| style(*color)), width));
        }
        lines.push(String::new());
    }
    lines
}

/// One line of every pane of a row.
fn beside<'a>(
    texts: impl Iterator<Item = &'a str>,
    styles: impl Iterator<Item = Style>,
    width: usize,
) -> String {
    let mut line = String::new();
    let mut blank = 0;
    for (text, style) in texts.zip(styles) {
        let _ = write!(line, "{:blank$}{style}{text}{style:#}", "");
        blank = GAP + width.saturating_sub(console::measure_text_width(text));
    }
    line
}

fn style(color: Option<AnsiColor>) -> Style {
    color.map_or(Style::new(), |color| color.on_default())
}

fn wrap(text: &str, width: usize) -> Vec<String> {
    textwrap::wrap(text, width).into_iter().map(String::from).collect()
}

/// The last lines, if not all may be shown.
fn last(mut lines: Vec<String>, height: Option<usize>) -> Vec<String> {
    let surplus = lines.len().saturating_sub(height.unwrap_or(usize::MAX));
    lines.split_off(surplus)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn panes(texts: &[&str]) -> Vec<Pane> {
        let pane = |(number, text): (usize, &&str)| Pane {
            title: format!("t{number}"),
            text: (*text).to_owned(),
        };
        texts.iter().enumerate().map(pane).collect()
    }

    fn plain(lines: Vec<String>) -> Vec<String> {
        lines.iter().map(|line| console::strip_ansi_codes(line).into_owned()).collect()
    }

    #[test]
    fn two_texts_stand_in_a_row() {
        let lines = layout(&panes(&["one two", "a", "b"]), 50, None);
        let gap = " ".repeat(24);
        let expected =
            [format!("t0{gap}t1"), format!("one two{}a", &gap[5..]), String::new(), "t2".into()];
        assert_eq!(plain(lines)[..4], expected);
    }

    #[test]
    fn no_line_is_wider_than_the_terminal() {
        let long = "word ".repeat(50) + &"x".repeat(100) + " Ünïcödé 漢字漢字漢字";
        for columns in [1, 20, 49, 50, 80, 200] {
            for line in layout(&panes(&[&long, &long, "a"]), columns, None) {
                let width = console::measure_text_width(&line);
                // A wide character has no room in one column.
                assert!(width <= columns.max(2), "{width} of {columns}: {line}");
            }
        }
    }

    #[test]
    fn the_end_of_a_text_is_shown_where_it_has_no_room() {
        let lines = layout(&panes(&["1 2 3 4 5 6 7 8", "", "x", ""]), 50, Some(6));
        assert!(lines.len() <= 6);
        let lines = layout(&panes(&[&"w ".repeat(100), "", "x", "last"]), 50, Some(10));
        assert_eq!(lines.len(), 3 + 2 + 1 + 2);
        assert!(plain(lines)[6].starts_with('x'));
    }
}
