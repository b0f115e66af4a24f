//! The report of a merge as a page: one file that needs nothing else, for readers who need not know
//! what a tensor is. Its pictures are SVG drawn here; its table has every figure.

mod plots;

use crate::terminal::{self, percent, size};
use plots::{Layers, Sizes};
use polylora_adapter::report::{Report, TensorReport, Verdict};
use std::fmt::{self, Display, Write};
use std::time::Duration;

/// What the page says of the merge beside its report.
pub(super) struct Heading<'a> {
    /// The model, as it was given.
    pub(super) base: &'a str,
    pub(super) adapters: &'a [&'a str],
    /// The file that was written.
    pub(super) out: &'a str,
    pub(super) took: Duration,
}

const STYLE: &str = include_str!("page/page.css");

/// The page, as HTML.
pub(super) fn page(report: &Report, heading: &Heading<'_>) -> String {
    let layers = Layers::of(report);
    let calibrated = report.calibration.is_some();
    let adapters = Names(heading.adapters);
    let base = Escaped(heading.base);
    let mut html = format!(
        "<!doctype html>\n\
         <html lang=\"en\">\n\
         <head>\n\
         <meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>Merged into {base}</title>\n\
         <style>\n{STYLE}</style>\n\
         </head>\n\
         <body>\n\
         <h1>{adapters} merged into <code>{base}</code></h1>\n\
         <p class=\"quiet\">Written to <code>{}</code> in {}, by polylora {}.</p>\n",
        Escaped(heading.out),
        terminal::seconds(heading.took),
        env!("CARGO_PKG_VERSION"),
    );
    html += &verdict(report);
    html += &figures(report);
    html += &plots::survived(&layers, calibrated);
    html += &plots::errors(&layers, calibrated);
    html += &plots::bits(report, &layers);
    html += &table(report);
    html += &list("Notes", report.notes.iter().map(|note| Escaped(note).to_string()));
    html += &list(
        "Parts of the adapter that were skipped",
        report.mismatches.iter().map(|mismatch| {
            format!("<code>{}</code>: {}", Escaped(&mismatch.tensor), Escaped(&mismatch.why))
        }),
    );
    html + "</body>\n</html>\n"
}

/// A text in which nothing is markup.
struct Escaped<'a>(&'a str);

impl Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for character in self.0.chars() {
            match character {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                '\'' => f.write_str("&#39;")?,
                _ => f.write_char(character)?,
            }
        }
        Ok(())
    }
}

/// `a, b`
struct Names<'a>(&'a [&'a str]);

impl Display for Names<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, name) in self.0.iter().enumerate() {
            let comma = if at == 0 { "" } else { ", " };
            write!(f, "{comma}<code>{}</code>", Escaped(name))?;
        }
        Ok(())
    }
}

fn verdict(report: &Report) -> String {
    let class = match report.outcome() {
        Some(Verdict::Kept) => "kept",
        Some(Verdict::Weakened) => "weakened",
        Some(Verdict::Lost) => "lost",
        None => "",
    };
    let verdict = report.verdict();
    let verdict = verdict.as_deref().unwrap_or("No adapter changed a weight.");
    format!("<div class=\"verdict {class}\">\n<p><b>{}</b></p>\n</div>\n", Escaped(verdict))
}

fn figures(report: &Report) -> String {
    let mut html = "<dl class=\"figures\">\n".to_owned();
    let mut figure = |name: &str, value: &str, note: &str| {
        let _ = writeln!(
            html,
            "<div><dt>{name}</dt><dd><b>{value}</b><small>{note}</small></dd></div>"
        );
    };
    if let Some(calibration) = &report.calibration {
        let note = format!(
            "nats from the adapter at run time; without the adapter {:.3}",
            calibration.base_divergence
        );
        figure("Divergence", &format!("{:.3}", calibration.divergence), &note);
    } else if let Some(survival) = report.adapter {
        let survived = percent(survival.survived);
        figure("Survived", &survived, "of the adapter's change is in the file");
        let error = percent(survival.relative_error);
        figure("Error", &error, "is the rounding, beside the size of the change");
    }
    let before = format!("were {} before", size(Sizes::of_file(report).before as u64));
    figure("Weights", &size(report.tensor_bytes), &before);
    let copied = format!("changed, {} copied as they were", report.copied);
    figure("Tensors", &report.tensors.len().to_string(), &copied);
    html + "</dl>\n"
}

fn types(tensor: &TensorReport) -> String {
    match tensor.from {
        Some(from) if from != tensor.to => format!("{from} to {}", tensor.to),
        _ => tensor.to.to_owned(),
    }
}

/// Every tensor with every figure.
fn table(report: &Report) -> String {
    if report.tensors.is_empty() {
        return String::new();
    }
    let mut html = "<h2>All changed tensors, the worst first</h2>\n\
        <p class=\"quiet\">Change: the size of the adapter's change beside the weights. Survived: \
        the part of it that arrived. Error: what rounding did, beside the change. Correlation: of \
        the change written with the change meant, 1 at best. Codes: the share of stored numbers \
        that differ from the model's.</p>\n\
        <div class=\"beside\"><figure><div class=\"scroll\"><table>\n<thead><tr>"
        .to_owned();
    let head = [
        "tensor",
        "dimensions",
        "type",
        "rank",
        "change",
        "survived",
        "error",
        "correlation",
        "codes",
    ];
    for name in head {
        let _ = write!(html, "<th scope=\"col\">{name}</th>");
    }
    html += "</tr></thead>\n<tbody>\n";
    for tensor in &report.tensors {
        let figures = tensor.survival.map_or([const { String::new() }; 3], |survival| {
            [
                percent(survival.survived),
                percent(survival.relative_error),
                format!("{:.3}", survival.correlation),
            ]
        });
        let start = [
            terminal::dimensions(&tensor.shape),
            types(tensor),
            tensor.rank.to_string(),
            percent(tensor.change),
        ];
        let codes = tensor.codes_changed.map_or(String::new(), percent);
        let _ = write!(html, "<tr><th scope=\"row\"><code>{}</code></th>", Escaped(&tensor.name));
        for cell in start.into_iter().chain(figures).chain([codes]) {
            let _ = write!(html, "<td>{cell}</td>");
        }
        html += "</tr>\n";
    }
    html + "</tbody>\n</table></div></figure></div>\n"
}

/// A list under a title; nothing where it is empty.
fn list(title: &str, items: impl Iterator<Item = String>) -> String {
    let mut html = String::new();
    for item in items {
        let _ = writeln!(html, "<li>{item}</li>");
    }
    if html.is_empty() {
        return html;
    }
    format!("<h2>{title}</h2>\n<ul class=\"list\">\n{html}</ul>\n")
}

#[cfg(test)]
mod tests {
    use super::plots::tooltip;
    use super::*;
    use polylora_adapter::report::Calibration;
    use polylora_adapter::rewrite::{Plan, TypeRules};
    use polylora_adapter::{AdapterSpec, Mismatch, OnMismatch, load};
    use polylora_file::{Gguf, WriteOptions};
    use std::sync::LazyLock;

    /// Of a merge of the model and an adapter that are in the program.
    static REPORT: LazyLock<Report> = LazyLock::new(|| merged(&["keep", "ffn_down=q8_0"]));

    fn merged(types: &[&str]) -> Report {
        let folder = tempfile::tempdir().unwrap();
        let written = polylora::embedded::write(folder.path()).unwrap();
        let base = Gguf::open(&written.model).unwrap();
        let adapter =
            load(&AdapterSpec::new(&written.adapters[1]), &base, OnMismatch::Fail).unwrap();
        let adapters = [adapter];
        let rules = TypeRules::parse(types).unwrap();
        let plan = Plan::merge(&base, &adapters, &rules, None).unwrap();
        let options = WriteOptions { overwrite: true, max_shard: None };
        plan.write(&folder.path().join("merged.gguf"), options, &()).unwrap()
    }

    const HEADING: Heading<'_> = Heading {
        base: "base.gguf",
        adapters: &["one", "two"],
        out: "out.gguf",
        took: Duration::from_millis(1234),
    };

    /// The page of a report, of which every element that was opened is closed in its place.
    fn well_formed(report: &Report, heading: &Heading<'_>) -> String {
        let html = page(report, heading);
        let mut open = Vec::new();
        let after_style = html.split_once("</style>").unwrap().1;
        let head = html.split_once("<style>").unwrap().0;
        for piece in head.split('<').skip(1).chain(after_style.split('<').skip(1)) {
            let (tag, text) = piece.split_once('>').unwrap();
            assert!(!text.contains('>'), "{piece}");
            assert!(tag.matches('"').count() % 2 == 0, "{tag}");
            let name = tag.split_whitespace().next().unwrap();
            if let Some(name) = name.strip_prefix('/') {
                assert_eq!(open.pop(), Some(name), "before {text}");
            } else if !(tag.ends_with('/') || ["meta", "!doctype"].contains(&name)) {
                open.push(name);
            }
        }
        assert!(open.is_empty(), "{open:?}");
        for wrong in ["NaN", "inf\"", "http-equiv=\"refresh", "<script", "src="] {
            assert!(!after_style.contains(wrong), "{wrong}");
        }
        html
    }

    #[test]
    fn every_tensor_is_there_with_its_figures() {
        let html = well_formed(&REPORT, &HEADING);
        assert_eq!(REPORT.tensors.len(), 20);
        for tensor in &REPORT.tensors {
            assert!(html.contains(&format!("<code>{}</code>", tensor.name)), "{}", tensor.name);
            assert!(html.contains(&tooltip(tensor)), "{}", tensor.name);
        }
        for text in [
            "<code>one</code>, <code>two</code> merged into <code>base.gguf</code>",
            "<code>out.gguf</code> in 1.2 s",
            &Escaped(&REPORT.verdict().unwrap()).to_string(),
            &size(REPORT.tensor_bytes),
            "8.50 bits (Q8_0)",
        ] {
            assert!(html.contains(text), "{text}");
        }
        assert!(!html.contains("Notes") && !html.contains("skipped"));
    }

    #[test]
    fn a_calibrated_merge_is_not_judged_by_its_weights() {
        let mut report = REPORT.clone();
        report.calibration = Some(Calibration {
            tokens: 1234,
            divergence: 0.0421,
            base_divergence: 1.234,
            output_error: 2.5,
            residual: None,
        });
        let html = well_formed(&report, &HEADING);
        assert!(html.contains("1234 tokens") && html.contains("0.042") && html.contains("1.234"));
        assert!(
            html.contains("polylora eval --against") && html.contains("class=\"verdict kept\"")
        );
        assert!(!html.contains(&Escaped(&REPORT.verdict().unwrap()).to_string()));
    }

    #[test]
    fn names_are_no_markup() {
        const HOSTILE: &str = "\"'></title><script>alert(1)</script>&amp;<b";
        let mut report = REPORT.clone();
        report.tensors[0].name = HOSTILE.to_owned();
        report.tensors[1].name = format!("blk.3.{HOSTILE}");
        report.tensors[2].name = format!("blk.{}.attn_q.weight", u64::MAX);
        report.tensors[3].name = String::new();
        report.tensors[4].name = "blk.0.é漢字漢字漢字漢字漢字漢字漢字漢字漢字漢字".to_owned();
        report.notes.push(HOSTILE.to_owned());
        report.mismatches.push(Mismatch { tensor: HOSTILE.to_owned(), why: HOSTILE.to_owned() });
        let heading = Heading { base: HOSTILE, adapters: &[HOSTILE], out: HOSTILE, ..HEADING };
        let html = well_formed(&report, &heading);
        assert!(html.contains("&quot;&#39;&gt;&lt;/title&gt;&lt;script&gt;alert(1)"));
        assert!(html.contains("&amp;amp;&lt;b"));
    }

    #[test]
    fn nothing_need_be_there() {
        let mut report = REPORT.clone();
        report.tensors.clear();
        report.adapter = None;
        let html = well_formed(&report, &Heading { adapters: &[], ..HEADING });
        assert!(html.contains("No adapter changed a weight."));
    }

    #[test]
    fn tensors_may_be_in_no_layer_or_change_their_type_only() {
        let mut report = REPORT.clone();
        for (at, tensor) in report.tensors.iter_mut().enumerate() {
            tensor.name = format!("tensor.{at}");
        }
        let html = well_formed(&report, &HEADING);
        assert!(html.contains("In no layer") && html.contains("<code>tensor.0</code>"));
        assert!(!html.contains("<polyline"));

        let mut report = REPORT.clone();
        for tensor in &mut report.tensors {
            (tensor.survival, tensor.from) = (None, None);
        }
        report.adapter = None;
        let html = well_formed(&report, &HEADING);
        assert!(html.contains("only its type changed") && html.contains("not in the model"));
    }
}
