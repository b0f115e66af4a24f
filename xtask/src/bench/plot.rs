//! Plots of a few lines over numbers that double.

use anyhow::{Result, anyhow};
use plotters::prelude::*;
use std::fmt::Write;
use std::path::Path;

/// One line of a plot.
pub(super) struct Series {
    name: &'static str,
    points: Vec<(usize, f64)>,
}

impl Series {
    pub(super) fn new(name: &'static str) -> Series {
        Series { name, points: Vec::new() }
    }

    pub(super) fn push(&mut self, x: usize, y: f64) {
        self.points.push((x, y));
    }
}

/// A plot of lines that have the same places on the horizontal axis.
pub(super) struct Chart<'a> {
    pub(super) title: &'a str,
    pub(super) x: &'a str,
    pub(super) y: &'a str,
    pub(super) series: &'a [Series],
}

/// Told apart by those who see few colours too (Okabe and Ito 2008).
const COLORS: [RGBColor; 4] =
    [RGBColor(0, 114, 178), RGBColor(230, 159, 0), RGBColor(0, 158, 115), RGBColor(204, 121, 167)];
const SIZE: (u32, u32) = (640, 400);

impl Chart<'_> {
    /// The places on the horizontal axis, which are drawn at equal distances.
    fn places(&self) -> Vec<usize> {
        self.series[0].points.iter().map(|(x, _)| *x).collect()
    }

    /// As a table in Markdown.
    pub(super) fn table(&self) -> String {
        let mut text = format!("{}, {}\n\n| {} |", self.title, self.y, self.x);
        for series in self.series {
            write!(text, " {} |", series.name).expect("a string takes everything");
        }
        text += "\n|---|";
        text += &"---|".repeat(self.series.len());
        for (n, x) in self.places().into_iter().enumerate() {
            write!(text, "\n| {x} |").expect("a string takes everything");
            for series in self.series {
                write!(text, " {:.1} |", series.points[n].1).expect("a string takes everything");
            }
        }
        text + "\n"
    }

    /// As an SVG.
    pub(super) fn write(&self, path: &Path) -> Result<()> {
        self.draw(path).map_err(|error| anyhow!("cannot draw {}: {error}", path.display()))
    }

    fn draw(&self, path: &Path) -> Result<(), Box<dyn std::error::Error + '_>> {
        let places = self.places();
        let all = self.series.iter().flat_map(|series| &series.points);
        let top = 1.1 * all.map(|(_, y)| *y).fold(0.0, f64::max);
        let root = SVGBackend::new(path, SIZE).into_drawing_area();
        root.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&root)
            .caption(self.title, ("sans-serif", 18))
            .margin(12)
            .x_label_area_size(42)
            .y_label_area_size(56)
            .build_cartesian_2d(-0.2..places.len() as f64 - 0.8, 0.0..top)?;
        let name = |at: &f64| {
            let place = places.get(at.round().max(0.0) as usize);
            place.filter(|_| at.fract().abs() < 1e-6).map(usize::to_string).unwrap_or_default()
        };
        chart
            .configure_mesh()
            .disable_x_mesh()
            .x_labels(places.len())
            .x_label_formatter(&name)
            .x_desc(self.x)
            .y_desc(self.y)
            .label_style(("sans-serif", 13))
            .draw()?;
        for (series, color) in self.series.iter().zip(COLORS) {
            let points = || series.points.iter().enumerate().map(|(n, (_, y))| (n as f64, *y));
            let line = LineSeries::new(points(), color.stroke_width(2));
            chart.draw_series(line)?.label(series.name).legend(move |(x, y)| {
                PathElement::new([(x, y), (x + 18, y)], color.stroke_width(2))
            });
            chart.draw_series(points().map(|point| Circle::new(point, 3, color.filled())))?;
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperLeft)
            .background_style(WHITE.mix(0.8))
            .label_font(("sans-serif", 13))
            .draw()?;
        root.present()?;
        Ok(())
    }
}
