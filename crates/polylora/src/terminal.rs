//! What a person at a terminal sees: progress, tables, errors. Answers go to standard output, all
//! else to standard error.

use anstyle::{AnsiColor, Style};
use anyhow::{Context, Result};
use console::Term;
use indicatif::{ProgressBar, ProgressStyle};
use polylora_adapter::rewrite::Observer;
use std::collections::BTreeMap;
use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Set by Ctrl-C (and by a request to end); asked before each piece of work, so that what was
/// begun is cleaned up.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// While nothing is begun that would need cleaning up, and something is waited for that may take
/// long: a line from a person (where the terminal hands Ctrl-C to the line editor, so that what
/// arrives as a signal is a request to end), or an answer from the network.
static WAITING: AtomicBool = AtomicBool::new(false);

/// What shells report of a program that Ctrl-C ended.
const ENDED_BY_SIGNAL: i32 = 130;

pub(crate) fn catch_interrupts() {
    // Where no handler can be set, Ctrl-C ends the program at once, as it does by default.
    let _ = ctrlc::set_handler(|| {
        if WAITING.load(Ordering::Relaxed) {
            std::process::exit(ENDED_BY_SIGNAL);
        }
        INTERRUPTED.store(true, Ordering::Relaxed);
    });
}

/// Whether Ctrl-C was pressed.
pub(crate) fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// Fails where Ctrl-C was pressed.
pub(crate) fn check_interrupt() -> Result<()> {
    if interrupted() { anyhow::bail!("interrupted") } else { Ok(()) }
}

/// Forgets that Ctrl-C was pressed: what it was to stop has ended.
pub(crate) fn forget_interrupt() {
    INTERRUPTED.store(false, Ordering::Relaxed);
}

/// Waits for something; Ctrl-C, or a request to end, ends the program at once.
pub(crate) fn waiting<R>(ask: impl FnOnce() -> R) -> R {
    WAITING.store(true, Ordering::Relaxed);
    let answer = ask();
    WAITING.store(false, Ordering::Relaxed);
    answer
}

/// Of a job of which the share is known that is done.
const SHARES: u64 = 1000;

/// A bar with rate and time left on standard error; nothing where that is no terminal.
pub(crate) struct Progress(ProgressBar);

impl Progress {
    pub(crate) fn bytes(total: u64, what: &'static str) -> Progress {
        let style = "{msg} {wide_bar} {bytes}/{total_bytes}  {bytes_per_sec}  {eta} left";
        let bar = ProgressBar::new(total)
            .with_style(ProgressStyle::with_template(style).expect("the template is constant"))
            .with_message(what);
        bar.enable_steady_tick(Duration::from_millis(200));
        Progress(bar)
    }

    pub(crate) fn steps(total: usize, what: &str) -> Progress {
        let style = "{msg} {wide_bar} {pos}/{len}  {eta} left";
        let bar = ProgressBar::new(total as u64)
            .with_style(ProgressStyle::with_template(style).expect("the template is constant"))
            .with_message(what.to_owned());
        bar.enable_steady_tick(Duration::from_millis(200));
        Progress(bar)
    }

    /// A job of which its share is known that is done.
    pub(crate) fn share(what: &'static str) -> Progress {
        let style = "{msg} {wide_bar} {percent} %  {eta} left";
        let bar = ProgressBar::new(SHARES)
            .with_style(ProgressStyle::with_template(style).expect("the template is constant"))
            .with_message(what);
        bar.enable_steady_tick(Duration::from_millis(200));
        Progress(bar)
    }

    /// So much is done, from 0 to 1.
    pub(crate) fn reached(&self, share: f64) {
        self.0.set_position((share * SHARES as f64) as u64);
    }

    /// A step is done; says what is known now.
    pub(crate) fn step(&self, message: String) {
        self.0.set_message(message);
        self.0.inc(1);
    }

    /// Stands at this many bytes, or steps.
    pub(crate) fn at(&self, place: u64) {
        self.0.set_position(place);
    }

    /// Stands at bytes that were there before: they say nothing of the rate.
    #[cfg(feature = "hub")]
    pub(crate) fn resume(&self, bytes: u64) {
        self.0.set_position(bytes);
        self.0.reset_eta();
    }

    /// Ends a job that stops quietly when it is interrupted.
    pub(crate) fn done(self) -> Result<()> {
        check_interrupt()
    }
}

impl Observer for Progress {
    fn wrote(&self, bytes: u64) {
        self.0.inc(bytes);
    }

    fn cancelled(&self) -> bool {
        interrupted()
    }
}

impl polylora_calibrate::Observer for Progress {
    fn reached(&self, share: f64) {
        Progress::reached(self, share);
    }

    fn cancelled(&self) -> bool {
        interrupted()
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

pub(crate) fn print(text: &str) -> Result<()> {
    anstream::stdout().write_all(text.as_bytes())?;
    Ok(())
}

/// Columns that a text may fill: those of the terminal as far as lines of that length are easy to
/// read; 80 where standard output is none.
pub(crate) fn columns() -> usize {
    let terminal = Term::stdout();
    let columns = terminal.size_checked().map_or(80, |(_, columns)| usize::from(columns));
    columns.clamp(1, 100)
}

/// Breaks a text into lines of [`columns`].
pub(crate) fn wrapped(text: &str) -> String {
    textwrap::fill(text, columns())
}

/// Prints a piece of what a model writes, at once and as it is.
pub(crate) fn stream(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    Ok(out.flush()?)
}

/// Says something beside the answer: on standard error.
pub(crate) fn tell(text: &str) {
    // As with errors: where nobody listens, there is nobody to tell.
    let _ = anstream::stderr().write_all(text.as_bytes());
}

pub(crate) fn print_json(value: &impl serde::Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value).context("cannot write JSON")?;
    print(&(text + "\n"))
}

pub(crate) fn print_error(error: &anyhow::Error) {
    let red = AnsiColor::Red.on_default().bold();
    // Nobody is left to tell where standard error is closed.
    let _ = writeln!(anstream::stderr(), "{red}error:{red:#} {error:#}");
}

/// The reader of our output went away, as `head` does: no failure.
pub(crate) fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let io = error.downcast_ref::<std::io::Error>();
    io.is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}

pub(crate) fn bold(text: &str) -> String {
    let style = Style::new().bold();
    format!("{style}{text}{style:#}")
}

pub(crate) fn colored(color: AnsiColor, text: &str) -> String {
    let style = color.on_default().bold();
    format!("{style}{text}{style:#}")
}

/// Columns as wide as their widest cell: the first to the left, the others to the right.
pub(crate) struct Table(Vec<Vec<String>>);

impl Table {
    pub(crate) fn new(head: &[&str]) -> Table {
        Table(vec![head.iter().map(|&cell| cell.to_owned()).collect()])
    }

    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.0.push(cells.into_iter().collect());
    }
}

impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let columns = self.0.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            let cells = self.0.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        for (number, row) in self.0.iter().enumerate() {
            let mut line = String::from(" ");
            for (column, (cell, &width)) in row.iter().zip(&widths).enumerate() {
                line += &match column {
                    0 => format!(" {cell:<width$}"),
                    _ => format!("  {cell:>width$}"),
                };
            }
            let line = line.trim_end();
            let line = if number == 0 { bold(line) } else { line.to_owned() };
            writeln!(f, "{line}")?;
        }
        Ok(())
    }
}

/// `9 F32, 28 IQ4_XS`: how often each name comes.
pub(crate) fn counts<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for name in names {
        *counts.entry(name).or_default() += 1;
    }
    let counts: Vec<String> = counts.iter().map(|(name, n)| format!("{n} {name}")).collect();
    counts.join(", ")
}

/// `1.2 GiB`
pub(crate) fn size(bytes: u64) -> String {
    indicatif::BinaryBytes(bytes).to_string()
}

/// `134.5 M`
pub(crate) fn count(number: u64) -> String {
    match number {
        0..1_000 => number.to_string(),
        1_000..1_000_000 => format!("{:.1} K", number as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} M", number as f64 / 1e6),
        _ => format!("{:.2} G", number as f64 / 1e9),
    }
}

/// `1.2 s`
pub(crate) fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

/// `48.3`: tokens a second, of which three digits mean something.
pub(crate) fn rate(per_second: f64) -> String {
    match per_second {
        100.0.. => format!("{per_second:.0}"),
        10.0.. => format!("{per_second:.1}"),
        _ => format!("{per_second:.2}"),
    }
}

/// `12.3 %`, `0.008 %`
pub(crate) fn percent(share: f64) -> String {
    let percent = 100.0 * share;
    match percent.abs() {
        0.1.. => format!("{percent:.1} %"),
        0.0005.. => format!("{percent:.3} %"),
        0.0 => "0 %".to_owned(),
        _ => format!("{percent:.0e} %"),
    }
}

/// `[2048, 576]`: as stored in a GGUF, fastest first, the way its users write it.
pub(crate) fn dimensions(shape: &[usize]) -> String {
    let parts: Vec<String> = shape.iter().rev().map(usize::to_string).collect();
    format!("[{}]", parts.join(", "))
}
