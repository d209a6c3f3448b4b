//! Curves as SVG files, one for each plot. Colours that are readable on a light and on a dark ground; text follows the reader's theme,
//! which takes a style of our own, and is why no crate draws them.
//!
//! It must not know what is measured.

use std::fmt::Write;
use std::path::Path;

use crate::series::{Kind, Series, short};

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 360.0;
/// Room for the labels of the axes, and for the legend.
const LEFT: f64 = 76.0;
const RIGHT: f64 = 20.0;
const TOP: f64 = 44.0;
const BOTTOM: f64 = 52.0;
const COLOURS: [&str; 5] = ["#3584e4", "#e66100", "#26a269", "#9141ac", "#c64600"];
const STYLE: &str = "text { font: 12px sans-serif; fill: #6e7781 } .grid { stroke: #8c959f; stroke-opacity: .35 } \
     @media (prefers-color-scheme: dark) { text { fill: #b1bac4 } }";

/// Draws all of them into a directory, and says so.
pub fn draw(dir: &Path, all: &[Series]) {
    std::fs::create_dir_all(dir).unwrap();
    let mut plots: Vec<&str> = all.iter().map(|series| series.plot).collect();
    plots.sort_unstable();
    plots.dedup();
    for plot in plots {
        let together: Vec<&Series> = all.iter().filter(|series| series.plot == plot && !series.points.is_empty()).collect();
        if !together.is_empty() {
            let path = dir.join(plot).with_extension("svg");
            std::fs::write(&path, svg(&together)).unwrap();
            println!("drawn: {}", path.display());
        }
    }
}

/// From values to places on the paper.
struct Axes {
    kind: Kind,
    /// Of all points, in order and each once.
    places: Vec<f64>,
    right: f64,
    top: f64,
}

impl Axes {
    fn of(all: &[&Series]) -> Self {
        let kind = all[0].kind;
        let mut places: Vec<f64> = all.iter().flat_map(|series| series.points.iter().map(|point| point.0)).collect();
        places.sort_by(f64::total_cmp);
        places.dedup();
        let last = places[places.len() - 1];
        // A bin ends where the next would begin.
        let bin = if kind == Kind::Histogram && places.len() > 1 { places[1] - places[0] } else { 0.0 };
        let highest = all.iter().flat_map(|series| series.points.iter().map(|point| point.1)).fold(0.0, f64::max);
        Self { kind, places, right: (last + bin).max(f64::MIN_POSITIVE), top: (highest * 1.05).max(f64::MIN_POSITIVE) }
    }

    fn x(&self, value: f64) -> f64 {
        let share = match self.kind {
            Kind::Line | Kind::Histogram => value / self.right,
            Kind::Steps => (self.places.partition_point(|place| *place < value) as f64 + 0.5) / self.places.len() as f64,
        };
        LEFT + share * (WIDTH - LEFT - RIGHT)
    }

    fn y(&self, value: f64) -> f64 {
        HEIGHT - BOTTOM - value / self.top * (HEIGHT - TOP - BOTTOM)
    }

    fn marks(&self) -> Vec<f64> {
        if self.kind == Kind::Steps { self.places.clone() } else { round_values(self.right) }
    }
}

/// Some round values from zero up to a limit: steps of 1, 2 or 5 times a power of ten.
fn round_values(limit: f64) -> Vec<f64> {
    let power = 10_f64.powf((limit / 5.0).log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].map(|times| times * power).into_iter().find(|step| limit / step <= 6.0).unwrap_or(limit);
    (0..=(limit / step) as u32).map(|times| f64::from(times) * step).collect()
}

fn svg(all: &[&Series]) -> String {
    let (axes, first) = (Axes::of(all), all[0]);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\">\n<title>{} over {}</title>\n<style>{STYLE}</style>\n",
        escaped(first.unit),
        escaped(first.over)
    );
    let (bottom, right) = (HEIGHT - BOTTOM, WIDTH - RIGHT);
    for mark in round_values(axes.top) {
        let y = axes.y(mark);
        let _infallible = writeln!(svg, "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{right}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>");
        text(&mut svg, LEFT - 8.0, y + 4.0, "end", "", &short(mark));
    }
    for mark in axes.marks() {
        text(&mut svg, axes.x(mark), bottom + 18.0, "middle", "", &short(mark));
    }
    text(&mut svg, f64::midpoint(LEFT, right), HEIGHT - 10.0, "middle", "", first.over);
    let middle = f64::midpoint(TOP, bottom);
    text(&mut svg, 16.0, middle, "middle", &format!(" transform=\"rotate(-90 16 {middle})\""), first.unit);
    let mut legend = LEFT;
    for (place, series) in all.iter().enumerate() {
        let colour = COLOURS[place % COLOURS.len()];
        let _infallible = writeln!(svg, "<rect x=\"{legend:.1}\" y=\"14\" width=\"12\" height=\"12\" fill=\"{colour}\"/>");
        text(&mut svg, legend + 18.0, 24.0, "start", "", &series.name);
        legend += 40.0 + 6.5 * series.name.chars().count() as f64;
        svg += &if series.kind == Kind::Histogram { bars(&axes, series, place, all.len(), colour) } else { line(&axes, series, colour) };
    }
    svg + "</svg>\n"
}

fn line(axes: &Axes, series: &Series, colour: &str) -> String {
    let places: Vec<(f64, f64)> = series.points.iter().map(|(x, y)| (axes.x(*x), axes.y(*y))).collect();
    let path: Vec<String> = places.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
    let mut svg = format!("<polyline fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\" points=\"{}\"/>\n", path.join(" "));
    if series.kind == Kind::Steps {
        svg.extend(places.iter().map(|(x, y)| format!("<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3.5\" fill=\"{colour}\"/>\n")));
    }
    svg
}

/// Those of the same bin stand side by side.
fn bars(axes: &Axes, series: &Series, place: usize, of: usize, colour: &str) -> String {
    let bin = (axes.x(axes.right) - LEFT) / axes.places.len() as f64;
    let width = bin * 0.9 / of as f64;
    let bar = |(x, y): &(f64, f64)| {
        let (x, y) = (axes.x(*x) + width * place as f64, axes.y(*y));
        format!("<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{:.1}\" fill=\"{colour}\"/>\n", HEIGHT - BOTTOM - y)
    };
    series.points.iter().map(bar).collect()
}

fn text(svg: &mut String, x: f64, y: f64, anchor: &str, more: &str, text: &str) {
    let _infallible = writeln!(svg, "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\"{more}>{}</text>", escaped(text));
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
