//! The drawings of the page, each under a title and a sentence on what to see in it.

use super::{Escaped, types};
use crate::terminal::{percent, size};
use polylora_adapter::report::{Report, Survival, TensorReport};
use polylora_quant::GgmlType;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

/// Tensors of a layer in the order in which data meets them; others follow by name.
const KINDS: [&str; 7] =
    ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"];

/// Of a change that lost more than this, much is gone: the limit of [`Survival::verdict`], and the
/// middle of the colours.
const MUCH: f64 = 0.7;
/// From this error on, rounding matters beside the change: the other limit of it.
const NOISY: f64 = 0.5;

/// What to think of errors that were made on purpose.
const CALIBRATED: &str =
    " After calibration this shows where weights were moved, not how well the model does.";

/// Where tensors stand: in a layer, as some kind; or in none.
pub(super) struct Layers<'a> {
    /// The layers that have changed tensors, each a column.
    numbers: Vec<u64>,
    kinds: Vec<&'a str>,
    placed: Vec<Placed<'a>>,
    outside: Vec<&'a TensorReport>,
}

struct Placed<'a> {
    /// Of [`Layers::numbers`].
    column: usize,
    /// Of [`Layers::kinds`].
    kind: usize,
    tensor: &'a TensorReport,
}

/// The layer and the kind in a name like `blk.12.attn_v.weight`.
fn place(name: &str) -> Option<(u64, &str)> {
    let (layer, kind) = name.strip_prefix("blk.")?.split_once('.')?;
    Some((layer.parse().ok()?, kind.strip_suffix(".weight").unwrap_or(kind)))
}

impl<'a> Layers<'a> {
    pub(super) fn of(report: &'a Report) -> Layers<'a> {
        let places = || report.tensors.iter().filter_map(|tensor| place(&tensor.name));
        // By what is there, not by the highest number: a name may hold any.
        let numbers: Vec<u64> =
            places().map(|(layer, _)| layer).collect::<BTreeSet<_>>().into_iter().collect();
        let order = |kind: &str| KINDS.iter().position(|&it| it == kind).unwrap_or(KINDS.len());
        let kinds: BTreeSet<(usize, &str)> =
            places().map(|(_, kind)| (order(kind), kind)).collect();
        let kinds: Vec<&str> = kinds.into_iter().map(|(_, kind)| kind).collect();
        let mut placed = Vec::new();
        let mut outside = Vec::new();
        for tensor in &report.tensors {
            let column = |layer| numbers.binary_search(&layer).ok();
            let kind = |name: &str| kinds.iter().position(|&kind| kind == name);
            let found =
                place(&tensor.name).and_then(|(layer, name)| Some((column(layer)?, kind(name)?)));
            match found {
                Some((column, kind)) => placed.push(Placed { column, kind, tensor }),
                None => outside.push(tensor),
            }
        }
        Layers { numbers, kinds, placed, outside }
    }

    /// The width of a column: all fit, as far as there is room for a number in each.
    fn step(&self) -> f64 {
        ((WIDTH - LEFT - RIGHT) / self.numbers.len() as f64).clamp(24.0, 56.0)
    }

    fn x(&self, column: usize) -> f64 {
        LEFT + self.step() * (column as f64 + 0.5)
    }

    fn width(&self) -> f64 {
        LEFT + self.step() * self.numbers.len() as f64 + RIGHT
    }

    /// The layers' numbers below a drawing.
    fn axis(&self, svg: &mut String, y: f64) {
        let _ =
            writeln!(svg, "<text class=\"axis end\" x=\"{}\" y=\"{y}\">layer</text>", LEFT - GAP);
        for (column, number) in self.numbers.iter().enumerate() {
            let x = self.x(column);
            let _ = writeln!(
                svg,
                "<text class=\"axis center\" x=\"{x:.1}\" y=\"{y}\">{}</text>",
                short(&number.to_string())
            );
        }
    }
}

/// The room on a page, in pixels; many layers take more.
const WIDTH: f64 = 880.0;
/// The room to the left, for names.
const LEFT: f64 = 112.0;
const RIGHT: f64 = 8.0;
/// Between a name and what it names.
const GAP: f64 = 8.0;

/// A name as far as there is room for it in a drawing.
fn short(name: &str) -> String {
    const MOST: usize = 14;
    if name.chars().count() <= MOST {
        return name.to_owned();
    }
    name.chars().take(MOST - 1).chain(['…']).collect()
}

fn svg(width: f64, height: f64, label: &str, content: &str) -> String {
    format!(
        "<div class=\"scroll\"><svg role=\"img\" \
         aria-label=\"{label}\" width=\"{width:.0}\" height=\"{height:.0}\" \
         viewBox=\"0 0 {width:.0} {height:.0}\">\n{content}</svg></div>\n"
    )
}

/// What is known of a tensor, as it is shown when it is pointed at.
pub(super) fn tooltip(tensor: &TensorReport) -> String {
    let mut text = format!("{}: {}", tensor.name, types(tensor));
    match tensor.survival {
        Some(survival) => {
            let _ = write!(
                text,
                "; {} of the change survived, error {}, correlation {:.3}",
                percent(survival.survived),
                percent(survival.relative_error),
                survival.correlation
            );
        }
        None => {
            let _ = write!(text, "; only its type changed, rounding {}", percent(tensor.rounding));
        }
    }
    format!("<title>{}</title>", Escaped(&text))
}

/// The colour of what survived, and that of a number on it. From orange over a pale middle at
/// [`MUCH`] to blue: apart for every kind of colour blindness.
fn heat(survived: f64) -> (String, &'static str) {
    const STOPS: [(f64, [f64; 3]); 5] = [
        (0.0, [150.0, 48.0, 0.0]),
        (0.35, [240.0, 130.0, 50.0]),
        (MUCH, [250.0, 240.0, 225.0]),
        (0.85, [146.0, 197.0, 222.0]),
        (1.0, [28.0, 98.0, 170.0]),
    ];
    let at = survived.clamp(0.0, 1.0);
    let above = STOPS.iter().position(|stop| at <= stop.0).unwrap_or(STOPS.len() - 1).max(1);
    let ((low, from), (high, to)) = (STOPS[above - 1], STOPS[above]);
    let part = (at - low) / (high - low);
    let [r, g, b] = [0, 1, 2].map(|channel| from[channel] + part * (to[channel] - from[channel]));
    let light = 0.3 * r + 0.59 * g + 0.11 * b;
    (format!("rgb({r:.0},{g:.0},{b:.0})"), if light > 135.0 { "#111" } else { "#fff" })
}

/// A heat map of what survived, layers to the right, kinds downwards; beside it what is
/// in no layer.
pub(super) fn survived(layers: &Layers<'_>, calibrated: bool) -> String {
    const ROW: f64 = 26.0;
    let calibrated = if calibrated { CALIBRATED } else { "" };
    let mut html = format!(
        "<h2>What survived, and where</h2>\n\
         <p>Each cell is one tensor (a table of weights). Its number is the percentage of the \
         adapter's change that is still there after rounding: blue, near 100, is good; pale is \
         about 70; orange means that much of the change was rounded away. Empty cells were left \
         alone. The table below has all figures.{calibrated}</p>\n\
         <div class=\"beside\">\n"
    );
    if !layers.numbers.is_empty() {
        let step = layers.step();
        let mut cells = String::new();
        for (row, kind) in layers.kinds.iter().enumerate() {
            let _ = writeln!(
                cells,
                "<text class=\"kind end\" x=\"{}\" y=\"{:.1}\">{}</text>",
                LEFT - GAP,
                ROW * (row as f64 + 0.5) + 4.0,
                Escaped(&short(kind))
            );
        }
        for Placed { column, kind, tensor } in &layers.placed {
            let (x, y) = (layers.x(*column), ROW * *kind as f64);
            let rect = format!(
                "<rect x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{}\"",
                x - step / 2.0 + 1.0,
                y + 1.0,
                step - 2.0,
                ROW - 2.0
            );
            let text = format!("<text class=\"center\" x=\"{x:.1}\" y=\"{:.1}\"", y + 17.0);
            let cell = match tensor.survival {
                Some(Survival { survived, .. }) => {
                    let (fill, ink) = heat(survived);
                    let number = 100.0 * survived;
                    format!(
                        "{rect} fill=\"{fill}\"/>{text} style=\"fill:{ink}\">{number:.0}</text>"
                    )
                }
                None => format!("{rect} class=\"none\"/>{text}>–</text>"),
            };
            let _ = writeln!(cells, "<g class=\"cell\">{}{cell}</g>", tooltip(tensor));
        }
        let height = ROW * layers.kinds.len() as f64;
        layers.axis(&mut cells, height + 16.0);
        html += "<figure>\n";
        html += &svg(
            layers.width(),
            height + 24.0,
            "What survived of the change, by layer and kind of tensor",
            &cells,
        );
        html += &scale();
        html += "</figure>\n";
    }
    if !layers.outside.is_empty() {
        html += "<div class=\"outside\"><h3>In no layer</h3>\n<ul>\n";
        for tensor in &layers.outside {
            let cell = match tensor.survival {
                Some(Survival { survived, .. }) => {
                    let (fill, ink) = heat(survived);
                    let number = 100.0 * survived;
                    format!("style=\"background:{fill};color:{ink}\">{number:.0}")
                }
                None => ">–".to_owned(),
            };
            let _ = writeln!(
                html,
                "<li><span class=\"cell\" {cell}</span><code>{}</code></li>",
                Escaped(&tensor.name)
            );
        }
        html += "</ul></div>\n";
    }
    html + "</div>\n"
}

/// What the colours of [`heat`] mean.
fn scale() -> String {
    const STEPS: usize = 40;
    const LENGTH: f64 = 160.0;
    let mut content = String::new();
    let width = LENGTH / STEPS as f64;
    for step in 0..STEPS {
        let (fill, _) = heat((step as f64 + 0.5) / STEPS as f64);
        // Wider than its part, so that no seam shows between two.
        let _ = writeln!(
            content,
            "<rect x=\"{}\" y=\"4\" width=\"{}\" height=\"10\" fill=\"{fill}\"/>",
            LEFT + width * step as f64,
            width + if step + 1 < STEPS { 0.5 } else { 0.0 }
        );
    }
    for share in [0.0, MUCH, 1.0] {
        let _ = writeln!(
            content,
            "<text class=\"axis center\" x=\"{:.0}\" y=\"28\">{:.0}</text>",
            LEFT + LENGTH * share,
            100.0 * share
        );
    }
    let _ = writeln!(
        content,
        "<text class=\"axis end\" x=\"{}\" y=\"13\">% survived</text>",
        LEFT - GAP
    );
    svg(LEFT + LENGTH + 16.0, 34.0, "Colours from 0 to 100 percent", &content)
}

/// Marks of about one size: no two series share both a mark and a colour before the 49th.
const MARKS: [&str; 7] = [
    "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0z",
    "M-3.6-3.6h7.2v7.2h-7.2z",
    "M0-5.2 4.8 3.4H-4.8z",
    "M0-5.2 5.2 0 0 5.2-5.2 0z",
    "M0 5.2 4.8-3.4H-4.8z",
    "M-1.6-5h3.2v3.4H5v3.2H1.6V5h-3.2V1.6H-5v-3.2h3.4z",
    "M0-2.2 2.6-4.8 4.8-2.6 2.2 0 4.8 2.6 2.6 4.8 0 2.2-2.6 4.8-4.8 2.6-2.2 0-4.8-2.6-2.6-4.8z",
];

/// The mark of a kind and the number of its colour.
fn series(kind: usize) -> (&'static str, usize) {
    let color = kind % MARKS.len();
    (MARKS[(kind + kind / MARKS.len()) % MARKS.len()], color)
}

/// The error of each tensor in a layer, a line for each kind. The scale is logarithmic: an error of
/// a hundredth and one of a hundred times the change must both be seen.
pub(super) fn errors(layers: &Layers<'_>, calibrated: bool) -> String {
    const HEIGHT: f64 = 260.0;
    const TOP: f64 = 10.0;
    /// Smaller errors stand at the bottom.
    const LEAST: f64 = 1e-4;
    let known = |placed: &Placed<'_>| {
        let survival = placed.tensor.survival?;
        Some(survival.relative_error.max(LEAST).log10())
    };
    let mut points: Vec<(&Placed<'_>, f64)> =
        layers.placed.iter().filter_map(|placed| Some((placed, known(placed)?))).collect();
    if points.is_empty() {
        return String::new();
    }
    points.sort_by_key(|(placed, _)| (placed.kind, placed.column));
    // Whole decades, among them the one in which errors begin to matter.
    let low = points.iter().fold(-1.0, |low: f64, (_, error)| low.min(error.floor())) as i32;
    let high = points.iter().fold(0.0, |high: f64, (_, error)| high.max(error.ceil())) as i32;
    let y = |log: f64| TOP + HEIGHT * (f64::from(high) - log) / f64::from(high - low);

    let mut content = String::new();
    let right = layers.width() - RIGHT;
    let mut tick = |error: f64, class: &str, label: &str| {
        let y = y(error.log10());
        let _ = writeln!(
            content,
            "<line class=\"{class}\" x1=\"{LEFT}\" x2=\"{right:.1}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>\
             <text class=\"axis end\" x=\"{}\" y=\"{:.1}\">{label}</text>",
            LEFT - GAP,
            y + 4.0
        );
    };
    for decade in low..=high {
        let error = 10_f64.powi(decade);
        tick(error, "grid", &times(error));
    }
    tick(NOISY, "limit", &format!("limit: {}", times(NOISY)));

    let mut legend = String::new();
    for of_kind in points.chunk_by(|(a, _), (b, _)| a.kind == b.kind) {
        let kind = of_kind[0].0.kind;
        let (mark, color) = series(kind);
        let mut line = String::new();
        let mut marks = String::new();
        for (placed, error) in of_kind {
            let (x, y) = (layers.x(placed.column), y(*error));
            let _ = write!(line, "{x:.1},{y:.1} ");
            let _ = writeln!(
                marks,
                "<path class=\"mark\" d=\"{mark}\" transform=\"translate({x:.1} {y:.1})\">{}</path>",
                tooltip(placed.tensor)
            );
        }
        let _ = writeln!(
            content,
            "<g class=\"c{color}\">\n<polyline points=\"{}\"/>\n{marks}</g>",
            line.trim_end()
        );
        let _ = writeln!(
            legend,
            "<li class=\"c{color}\"><svg width=\"14\" height=\"14\" viewBox=\"-7 -7 14 14\" \
             aria-hidden=\"true\"><path class=\"mark\" d=\"{mark}\"/></svg>\
             <code>{}</code></li>",
            Escaped(layers.kinds[kind])
        );
    }
    layers.axis(&mut content, TOP + HEIGHT + 22.0);

    let calibrated = if calibrated { CALIBRATED } else { "" };
    format!(
        "<h2>What rounding did beside the change</h2>\n\
         <p>Rounding puts a small error into every weight. This is its size measured by the \
         adapter's own change, a mark for each tensor: lower is better. Below the dashed line it \
         hardly matters; at 100&nbsp;% it is as large as the change itself. Each solid line is ten \
         times the one below it.{calibrated}</p>\n\
         <div class=\"beside\"><figure>\n{}<ul class=\"legend\">\n{legend}</ul>\n</figure></div>\n",
        svg(
            layers.width(),
            TOP + HEIGHT + 30.0,
            "Rounding error beside the change, by layer and kind of tensor",
            &content
        )
    )
}

/// `0.1 %`, `50 %`, `10 times`
fn times(error: f64) -> String {
    if error > 1.0 { format!("{error:.0} times") } else { format!("{} %", 100.0 * error) }
}

/// What tensors take, before and after.
#[derive(Default)]
pub(super) struct Sizes {
    /// Weights that were there before.
    weights_before: f64,
    /// Bytes of them.
    pub(super) before: f64,
    weights: f64,
    after: f64,
    types_before: BTreeSet<&'static str>,
    types: BTreeSet<&'static str>,
}

impl Sizes {
    fn of<'a>(tensors: impl IntoIterator<Item = &'a TensorReport>) -> Sizes {
        let bytes = |ty: &str, weights: f64| {
            // Types come from tables of those that there are.
            weights / 8.0 * ty.parse().map_or(0.0, GgmlType::bits_per_weight)
        };
        let mut sizes = Sizes::default();
        for tensor in tensors {
            let weights: f64 = tensor.shape.iter().map(|&length| length as f64).product();
            sizes.weights += weights;
            sizes.after += bytes(tensor.to, weights);
            sizes.types.insert(tensor.to);
            if let Some(from) = tensor.from {
                sizes.weights_before += weights;
                sizes.before += bytes(from, weights);
                sizes.types_before.insert(from);
            }
        }
        sizes
    }

    /// Of all tensors of the file: copied ones took as much before.
    pub(super) fn of_file(report: &Report) -> Sizes {
        let mut sizes = Sizes::of(&report.tensors);
        let all = report.tensor_bytes as f64;
        sizes.before += all - sizes.after;
        sizes.after = all;
        sizes
    }

    /// Bits of a weight, before and after; 0 where there was none.
    fn bits(&self) -> [f64; 2] {
        let bits =
            |bytes: f64, weights: f64| if weights > 0.0 { 8.0 * bytes / weights } else { 0.0 };
        [bits(self.before, self.weights_before), bits(self.after, self.weights)]
    }
}

/// Bars of the bits that a weight takes, for each kind of tensor.
pub(super) fn bits(report: &Report, layers: &Layers<'_>) -> String {
    const ROW: f64 = 40.0;
    const BAR: f64 = 13.0;
    const LONGEST: f64 = 300.0;
    /// Room for what is written behind the longest bar.
    const LABEL: f64 = 220.0;
    let mut by_kind: BTreeMap<usize, Vec<&TensorReport>> = BTreeMap::new();
    for placed in &layers.placed {
        by_kind.entry(placed.kind).or_default().push(placed.tensor);
    }
    let kinds = by_kind.into_iter().map(|(kind, tensors)| (layers.kinds[kind], Sizes::of(tensors)));
    let alone = layers.outside.iter().map(|&tensor| (&*tensor.name, Sizes::of([tensor])));
    let rows: Vec<(&str, Sizes)> = kinds.chain(alone).collect();
    let most = rows.iter().flat_map(|(_, sizes)| sizes.bits()).fold(0.0, f64::max);
    if most == 0.0 {
        return String::new();
    }

    let mut content = String::new();
    for (row, (name, sizes)) in rows.iter().enumerate() {
        let top = ROW * row as f64;
        let _ = writeln!(
            content,
            "<text class=\"kind end\" x=\"{}\" y=\"{:.1}\"><title>{}</title>{}</text>",
            LEFT - GAP,
            top + BAR + 6.0,
            Escaped(name),
            Escaped(&short(name.strip_suffix(".weight").unwrap_or(name)))
        );
        let [before, after] = sizes.bits();
        let bars = [
            ("before", before, sizes.before, &sizes.types_before),
            ("after", after, sizes.after, &sizes.types),
        ];
        for (at, (class, bits, bytes, types)) in bars.into_iter().enumerate() {
            let (y, length) = (top + 2.0 + (BAR + 2.0) * at as f64, LONGEST * bits / most);
            let types: Vec<&str> = types.iter().copied().collect();
            let label = match types[..] {
                [] => "not in the model".to_owned(),
                _ => format!("{bits:.2} bits ({}), {}", types.join(", "), size(bytes as u64)),
            };
            let _ = writeln!(
                content,
                "<rect class=\"{class}\" x=\"{LEFT}\" y=\"{y:.1}\" width=\"{length:.1}\" \
                 height=\"{BAR}\"/><text class=\"axis\" x=\"{:.1}\" y=\"{:.1}\">{label}</text>",
                LEFT + length + GAP,
                y + BAR - 3.0
            );
        }
    }
    let changed = Sizes::of(&report.tensors);
    let all = Sizes::of_file(report);
    let [changed_before, changed_after, before, after] =
        [changed.before, changed.after, all.before, all.after].map(|bytes| size(bytes as u64));
    format!(
        "<h2>What it costs in space</h2>\n\
         <p>The bits that one weight takes in each kind of tensor, scales included. Bars of one \
         length mean that the file stays as small as it was; a longer bar below buys less rounding \
         with more memory.</p>\n\
         <div class=\"beside\"><figure>\n{}<ul class=\"legend\">\n\
         <li><svg width=\"14\" height=\"14\" aria-hidden=\"true\">\
         <rect class=\"before\" x=\"1\" y=\"1\" width=\"12\" height=\"12\"/></svg>before</li>\n\
         <li><svg width=\"14\" height=\"14\" aria-hidden=\"true\">\
         <rect class=\"after\" x=\"1\" y=\"1\" width=\"12\" height=\"12\"/></svg>after</li>\n\
         </ul>\n</figure></div>\n\
         <p class=\"quiet\">The changed tensors together: {changed_before} before, {changed_after} \
         after. All tensors of the file: {before} before, {after} after.</p>\n",
        svg(
            LEFT + LONGEST + LABEL,
            ROW * rows.len() as f64,
            "Bits of a weight before and after",
            &content
        )
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use polylora_adapter::report::Verdict;

    #[test]
    fn colours_turn_and_the_dashed_line_stands_where_verdicts_turn() {
        let verdict = |survived, relative_error| {
            Survival { survived, relative_error, correlation: 1.0 }.verdict()
        };
        assert_eq!(verdict(MUCH, NOISY), Verdict::Kept);
        assert_eq!(verdict(MUCH - 1e-9, NOISY), Verdict::Lost);
        assert_eq!(verdict(MUCH, NOISY + 1e-9), Verdict::Weakened);
        assert_eq!(heat(-1.0), heat(0.0));
        assert_eq!(heat(7.0), heat(1.0));
        assert_eq!(heat(MUCH).0, "rgb(250,240,225)");
    }
}
