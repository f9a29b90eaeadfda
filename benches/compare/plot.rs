//! Grouped bars as an SVG.

use crate::report::short;
use std::fmt::Write;

const WIDTH: f64 = 880.0;
/// From the left edge to the axis, and from the end of the axis to the right edge.
const LEFT: f64 = 250.0;
const RIGHT: f64 = 70.0;
const TOP: f64 = 110.0;
const BOTTOM: f64 = 58.0;
const BAR: f64 = 15.0;
const BETWEEN_BARS: f64 = 3.0;
const BETWEEN_GROUPS: f64 = 16.0;

/// Which scale the axis has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scale {
    /// From zero.
    Linear,
    /// From a power of ten.
    Log,
}

/// Bars in groups, one for each series that has a value there.
pub(crate) struct Chart {
    /// What it shows.
    pub(crate) title: &'static str,
    /// How to read it.
    pub(crate) subtitle: String,
    /// What the axis measures.
    pub(crate) axis: &'static str,
    /// Its scale.
    pub(crate) scale: Scale,
    /// Where a line is to be, and what it stands for.
    pub(crate) reference: Option<(f64, &'static str)>,
    /// Names of the series, with the colours of their bars.
    pub(crate) series: Vec<(&'static str, &'static str)>,
    /// Each with its name and a value for each series.
    pub(crate) groups: Vec<(String, Vec<Option<f64>>)>,
}

struct Axis {
    scale: Scale,
    from: f64,
    to: f64,
    ticks: Vec<f64>,
}

impl Axis {
    fn of(chart: &Chart) -> Self {
        let values = chart.groups.iter().flat_map(|(_, values)| values.iter().flatten().copied());
        let reference = chart.reference.map(|(at, _)| at);
        let all: Vec<f64> = values.chain(reference).filter(|value| *value > 0.0).collect();
        let most = all.iter().copied().fold(f64::MIN_POSITIVE, f64::max);
        let least = all.iter().copied().fold(most, f64::min);
        match chart.scale {
            Scale::Linear => {
                let rough = most / 6.0;
                let power = 10_f64.powf(rough.log10().floor());
                let step = [1.0, 2.0, 2.5, 5.0, 10.0].map(|factor| factor * power);
                let step = step.into_iter().find(|step| *step >= rough).unwrap_or(power);
                let count = (most / step).ceil();
                let ticks = std::iter::successors(Some(0.0), |tick| Some(tick + 1.0));
                let ticks =
                    ticks.take_while(|tick| *tick <= count).map(|tick| tick * step).collect();
                Self { scale: Scale::Linear, from: 0.0, to: count * step, ticks }
            }
            Scale::Log => {
                // A bar of the least value has to have some length.
                let (from, to) = ((least / 2.0).log10().floor(), most.log10().ceil());
                let powers = std::iter::successors(Some(from), |power| Some(power + 1.0));
                let ticks = powers
                    .take_while(|power| *power <= to)
                    .map(|power| 10_f64.powf(power))
                    .collect();
                Self { scale: Scale::Log, from, to: to.max(from + 1.0), ticks }
            }
        }
    }

    fn x(&self, value: f64) -> f64 {
        let value = if self.scale == Scale::Log { value.log10() } else { value };
        LEFT + ((value - self.from) / (self.to - self.from)).clamp(0.0, 1.0)
            * (WIDTH - LEFT - RIGHT)
    }
}

impl Chart {
    /// The picture: first what lies behind, then the bars, the line through them, and what has to
    /// be readable before all.
    pub(crate) fn to_svg(&self) -> String {
        let axis = Axis::of(self);
        let (mut bars, mut texts) = (String::new(), String::new());
        let mut y = TOP;
        for (name, values) in &self.groups {
            let height =
                values.iter().flatten().count() as f64 * (BAR + BETWEEN_BARS) - BETWEEN_BARS;
            let (x, middle) = (LEFT - 12.0, y + height / 2.0 + 5.0);
            put(
                &mut texts,
                format_args!(
                    "<text class=\"text\" x=\"{x:.1}\" y=\"{middle:.1}\" \
                     text-anchor=\"end\">{name}</text>"
                ),
            );
            for ((series, colour), value) in self.series.iter().zip(values) {
                let Some(value) = value else { continue };
                let (end, figure) = (axis.x(*value), short(*value));
                let length = (end - LEFT).max(1.0);
                put(
                    &mut bars,
                    format_args!(
                        "<rect x=\"{LEFT:.1}\" y=\"{y:.1}\" width=\"{length:.1}\" \
                         height=\"{BAR:.1}\" rx=\"2\" fill=\"{colour}\">\
                         <title>{name}, {series}: {figure}</title></rect>"
                    ),
                );
                let (x, base) = (end + 5.0, y + BAR - 3.5);
                put(
                    &mut texts,
                    format_args!(
                        "<text class=\"figure\" x=\"{x:.1}\" y=\"{base:.1}\">{figure}</text>"
                    ),
                );
                y += BAR + BETWEEN_BARS;
            }
            y += BETWEEN_GROUPS - BETWEEN_BARS;
        }
        let bottom = y - BETWEEN_GROUPS + 8.0;
        let (head, grid) = (self.head(bottom + BOTTOM), self.grid(&axis, bottom));
        [head, grid, bars, self.line(&axis, bottom), texts, "</svg>\n".to_owned()].concat()
    }

    fn head(&self, height: f64) -> String {
        let mut head = String::new();
        put(
            &mut head,
            format_args!(
                "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height:.0}\" \
                 role=\"img\" aria-labelledby=\"title\"\n     \
             font-family=\"system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif\" \
             font-size=\"14\">\n\
             <title id=\"title\">{}</title>\n\
             <style>.text {{ fill: #1d2520 }} .soft {{ fill: #5b6b60; font-size: 13px }} .figure \
             {{ fill: #3d4741; font-size: 12px; paint-order: stroke; stroke: #ffffff; \
             stroke-width: 3px }} \
             .grid {{ stroke: #e1e6e2 }} .axis {{ stroke: #8a968d }} .reference {{ stroke: \
             #1d2520; stroke-dasharray: 5 4; stroke-width: 1.5 }}</style>\n\
             <rect width=\"{WIDTH}\" height=\"{height:.0}\" rx=\"10\" fill=\"#ffffff\"/>\n\
             <text class=\"text\" x=\"24\" y=\"32\" font-size=\"17\" \
             font-weight=\"600\">{}</text>\n\
             <text class=\"soft\" x=\"24\" y=\"52\">{}</text>",
                self.title, self.title, self.subtitle
            ),
        );
        let mut x = LEFT;
        for (name, colour) in &self.series {
            put(
                &mut head,
                format_args!(
                    "<rect x=\"{x:.1}\" y=\"66\" width=\"12\" height=\"12\" rx=\"2\" \
                     fill=\"{colour}\"/>\
                 <text class=\"text\" x=\"{:.1}\" y=\"77\">{name}</text>",
                    x + 18.0
                ),
            );
            x += 46.0 + 8.0 * name.len() as f64;
        }
        head
    }

    fn grid(&self, axis: &Axis, bottom: f64) -> String {
        let mut grid = String::new();
        for tick in &axis.ticks {
            let x = axis.x(*tick);
            let class = if (x - LEFT).abs() < 0.5 { "axis" } else { "grid" };
            put(
                &mut grid,
                format_args!(
                    "<line class=\"{class}\" x1=\"{x:.1}\" y1=\"{:.1}\" x2=\"{x:.1}\" \
                     y2=\"{bottom:.1}\"/>\
                 <text class=\"soft\" x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
                    TOP - 6.0,
                    bottom + 18.0,
                    plain(*tick)
                ),
            );
        }
        put(
            &mut grid,
            format_args!(
                "<text class=\"soft\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
                (LEFT + WIDTH - RIGHT) / 2.0,
                bottom + 40.0,
                self.axis
            ),
        );
        grid
    }

    fn line(&self, axis: &Axis, bottom: f64) -> String {
        let mut line = String::new();
        if let Some((at, name)) = self.reference {
            let x = axis.x(at);
            put(
                &mut line,
                format_args!(
                    "<line class=\"reference\" x1=\"{x:.1}\" y1=\"{:.1}\" x2=\"{x:.1}\" \
                     y2=\"{bottom:.1}\"/>\
                 <text class=\"text\" x=\"{x:.1}\" y=\"{:.1}\" font-size=\"12\" \
                 text-anchor=\"middle\">{name}</text>",
                    TOP - 6.0,
                    TOP - 11.0
                ),
            );
        }
        line
    }
}

/// A number of the axis, without digits that say nothing.
fn plain(value: f64) -> String {
    let text = format!("{value:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// Writing to a string cannot fail.
fn put(out: &mut String, line: std::fmt::Arguments<'_>) {
    let _ = out.write_fmt(line);
    out.push('\n');
}
