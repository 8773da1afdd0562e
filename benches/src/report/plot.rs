//! Pictures as SVG inside a page. Colours and type come from the page's style, so that they fit a light and a dark page.

use std::fmt::Write as _;

use super::number::{linear_marks, logarithmic_marks, mark, short};
use super::page::escape;
use super::{Axis, Plot, Point, Row, Table};

/// Width of every picture, in its own units.
const WIDTH: f64 = 720.0;
/// Colours of series, after which they begin again. There are four shapes, so that colour and shape together are twelve.
const SERIES: usize = 6;

/// The first column of a table as bars from zero, with the spread as a whisker and each measurement as a dot.
pub(super) fn bars(table: &Table) -> String {
    const ROW: f64 = 30.0;
    const BAR: f64 = 16.0;
    const TOP: f64 = 8.0;
    let Some(column) = table.columns.first() else { return String::new() };
    let left = 16.0 + 7.2 * table.rows.iter().map(|row| row.name.chars().count()).max().unwrap_or(0).min(32) as f64;
    let right = 96.0;
    let highest = table.rows.iter().filter_map(|row| row.cells.first()?.as_ref()).map(|figure| figure.largest);
    let marks = linear_marks(highest.fold(0.0, f64::max));
    let end = marks.last().copied().unwrap_or(1.0);
    let x = |value: f64| left + (WIDTH - left - right) * (value / end).clamp(0.0, 1.0);
    let bottom = TOP + ROW * table.rows.len() as f64;
    let height = bottom + 40.0;
    let mut svg = opened(height, &format!("{} by {}", column.name, table.of));
    for value in &marks {
        let at = x(*value);
        let _ = write!(svg, "<line class=\"grid\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{TOP}\" y2=\"{bottom}\"/>");
        let _ = write!(
            svg,
            "<text class=\"mark\" x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            bottom + 15.0,
            mark(*value)
        );
    }
    let better = match column.larger_is_better {
        Some(true) => " → better",
        Some(false) => " ← better",
        None => "",
    };
    let title = escape(&format!("{}{better}", column.heading()));
    let middle = f64::midpoint(left, WIDTH - right);
    let _ = write!(
        svg,
        "<text class=\"axis\" x=\"{middle:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{title}</text>",
        bottom + 33.0
    );
    for (at, row) in table.rows.iter().enumerate() {
        let y = TOP + ROW * (at as f64 + 0.5);
        bar(&mut svg, row, y, BAR, left, &x);
    }
    svg + "</svg>"
}

fn bar(svg: &mut String, row: &Row, y: f64, thick: f64, left: f64, x: &impl Fn(f64) -> f64) {
    let class = if row.own { "own" } else { "other" };
    let name: String = row.name.chars().take(32).collect();
    let base = y + 4.0;
    let _ = write!(
        svg,
        "<text class=\"label {class}\" x=\"{:.1}\" y=\"{base:.1}\" text-anchor=\"end\">{}</text>",
        left - 8.0,
        escape(&name)
    );
    let Some(Some(figure)) = row.cells.first() else {
        let _ = write!(svg, "<text class=\"mark\" x=\"{:.1}\" y=\"{base:.1}\">not measured</text>", left + 6.0);
        return;
    };
    let (top, end) = (y - thick / 2.0, x(figure.median));
    let _ = write!(
        svg,
        "<rect class=\"bar {class}\" x=\"{left:.1}\" y=\"{top:.1}\" width=\"{:.1}\" height=\"{thick}\" rx=\"2\"/>",
        (end - left).max(1.0)
    );
    if figure.is_spread() {
        let (low, high) = (x(figure.smallest), x(figure.largest));
        let _ = write!(
            svg,
            "<path class=\"whisker\" d=\"M{low:.1} {y:.1}H{high:.1}M{low:.1} {0:.1}v8M{high:.1} {0:.1}v8\"/>",
            y - 4.0
        );
        for sample in &figure.samples {
            let hollow = if sample.disturbed { " hollow" } else { "" };
            let _ =
                write!(svg, "<circle class=\"sample{hollow}\" cx=\"{:.1}\" cy=\"{y:.1}\" r=\"2.6\"/>", x(sample.value));
        }
    }
    let bound = if figure.at_least() { "≥ " } else { "" };
    let beside = x(figure.largest) + 8.0;
    let _ =
        write!(svg, "<text class=\"value\" x=\"{beside:.1}\" y=\"{base:.1}\">{bound}{}</text>", short(figure.median));
}

/// Series over two axes, with a legend above.
pub(super) fn lines(plot: &Plot) -> String {
    const LEFT: f64 = 70.0;
    const RIGHT: f64 = 20.0;
    const HEIGHT: f64 = 260.0;
    let legend = legend(plot);
    let top = legend.1 + 10.0;
    let bottom = top + HEIGHT;
    let points = || plot.series.iter().flat_map(|series| series.points.iter()).filter(|point| is_drawn(point));
    let x = Scale::over(&plot.x, points().map(|point| point.x), (LEFT, WIDTH - RIGHT));
    let heights = points().flat_map(|point| point.spread.unwrap_or([point.y; 2]).into_iter().chain([point.y]));
    let y = Scale::over(&plot.y, heights, (bottom, top));
    let mut svg = opened(bottom + 44.0, &plot.title);
    svg += &legend.0;
    for value in &x.marks {
        let at = x.at(*value);
        let _ = write!(svg, "<line class=\"grid\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{top:.1}\" y2=\"{bottom:.1}\"/>");
        let _ = write!(
            svg,
            "<text class=\"mark\" x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            bottom + 16.0,
            mark(*value)
        );
    }
    for value in &y.marks {
        let at = y.at(*value);
        let _ = write!(
            svg,
            "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>",
            WIDTH - RIGHT
        );
        let _ = write!(
            svg,
            "<text class=\"mark\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            LEFT - 7.0,
            at + 4.0,
            mark(*value)
        );
    }
    let (middle, title) = (f64::midpoint(LEFT, WIDTH - RIGHT), named(&plot.x));
    let _ = write!(
        svg,
        "<text class=\"axis\" x=\"{middle:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{title}</text>",
        bottom + 36.0
    );
    let (middle, title) = (f64::midpoint(top, bottom), named(&plot.y));
    let _ = write!(
        svg,
        "<text class=\"axis\" transform=\"translate(16 {middle:.1}) rotate(-90)\" text-anchor=\"middle\">{title}</text>"
    );
    for (number, series) in plot.series.iter().enumerate() {
        let class = number % SERIES;
        let drawn: Vec<&Point> = series.points.iter().filter(|point| is_drawn(point)).collect();
        let mut path = String::new();
        for point in &drawn {
            let step = if path.is_empty() { 'M' } else { 'L' };
            let _ = write!(path, "{step}{:.1} {:.1}", x.at(point.x), y.at(point.y));
        }
        let _ = write!(svg, "<path class=\"line s{class}\" d=\"{path}\"/>");
        for point in drawn {
            let at = x.at(point.x);
            if let Some([low, high]) = point.spread {
                let (low, high) = (y.at(low), y.at(high));
                let _ = write!(
                    svg,
                    "<path class=\"spread s{class}\" d=\"M{at:.1} {low:.1}V{high:.1}M{0:.1} {low:.1}h8M{0:.1} {high:.1}h8\"/>",
                    at - 4.0
                );
            }
            shape(&mut svg, number, at, y.at(point.y));
        }
    }
    svg + "</svg>"
}

/// An axis of a picture: from values to places.
struct Scale {
    marks: Vec<f64>,
    logarithmic: bool,
    range: (f64, f64),
}

impl Scale {
    fn over(axis: &Axis, values: impl Iterator<Item = f64>, range: (f64, f64)) -> Self {
        let values: Vec<f64> = values.collect();
        let highest = values.iter().copied().fold(0.0, f64::max);
        let lowest = values.iter().copied().filter(|value| *value > 0.0).fold(highest, f64::min);
        let logarithmic = axis.logarithmic && highest > 0.0;
        let marks = if logarithmic { logarithmic_marks(lowest, highest) } else { linear_marks(highest) };
        // Of what is counted there are no halves, as long as the marks reach over all values.
        let whole: Vec<f64> = marks.iter().copied().filter(|mark| mark.fract() == 0.0).collect();
        let counted = !logarithmic && values.iter().all(|value| value.fract() == 0.0);
        let marks = if counted && highest > 0.0 && whole.last() >= Some(&highest) { whole } else { marks };
        Self { marks, logarithmic, range }
    }

    fn at(&self, value: f64) -> f64 {
        let (first, last) = (self.marks.first().copied().unwrap_or(0.0), self.marks.last().copied().unwrap_or(1.0));
        let share = if self.logarithmic {
            (value.max(first).log10() - first.log10()) / (last.log10() - first.log10())
        } else {
            (value - first) / (last - first)
        };
        self.range.0 + (self.range.1 - self.range.0) * share.clamp(0.0, 1.0)
    }
}

fn is_drawn(point: &Point) -> bool {
    point.x.is_finite()
        && point.y.is_finite()
        && point.spread.is_none_or(|spread| spread.iter().all(|end| end.is_finite()))
}

fn opened(height: f64, title: &str) -> String {
    let title = escape(title);
    format!("<svg viewBox=\"0 0 {WIDTH} {height:.0}\" role=\"img\" aria-label=\"{title}\">")
}

fn named(axis: &Axis) -> String {
    escape(&if axis.unit.is_empty() { axis.name.clone() } else { format!("{}, {}", axis.name, axis.unit) })
}

/// The legend, and where it ends.
fn legend(plot: &Plot) -> (String, f64) {
    let (mut svg, mut x, mut y) = (String::new(), 70.0, 14.0);
    for (number, series) in plot.series.iter().enumerate() {
        let width = 36.0 + 7.2 * series.name.chars().count() as f64;
        if x + width > WIDTH && x > 70.0 {
            (x, y) = (70.0, y + 20.0);
        }
        let class = number % SERIES;
        let _ = write!(svg, "<path class=\"line s{class}\" d=\"M{x:.1} {y:.1}h18\"/>");
        shape(&mut svg, number, x + 9.0, y);
        let _ = write!(
            svg,
            "<text class=\"label\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
            x + 24.0,
            y + 4.0,
            escape(&series.name)
        );
        x += width;
    }
    (svg, y)
}

/// A point's shape: by it, and not by colour alone, series are told apart.
fn shape(svg: &mut String, number: usize, x: f64, y: f64) {
    let class = number % SERIES;
    let (left, up) = (x - 4.0, y - 4.0);
    let _ = match number % 4 {
        0 => write!(svg, "<circle class=\"point s{class}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4\"/>"),
        1 => write!(svg, "<rect class=\"point s{class}\" x=\"{left:.1}\" y=\"{up:.1}\" width=\"8\" height=\"8\"/>"),
        2 => write!(svg, "<path class=\"point s{class}\" d=\"M{x:.1} {:.1}l5 9h-10z\"/>", y - 5.0),
        _ => write!(svg, "<path class=\"point s{class}\" d=\"M{x:.1} {:.1}l5 5l-5 5l-5 -5z\"/>", y - 5.0),
    };
}

#[cfg(test)]
mod tests {
    use super::super::{Column, Figure, Series};
    use super::*;

    fn plot(points: Vec<Point>) -> Plot {
        let series = vec![Series { name: "one".to_owned(), points }];
        Plot { title: "t".into(), x: Axis::new("x", "kpps"), y: Axis::new("y", "%").logarithmic(), series }
    }

    #[test]
    fn every_point_is_drawn_inside_the_picture_even_where_a_logarithm_has_no_place_for_it() {
        let svg = lines(&plot(vec![Point::at(0.0, 0.0), Point::at(5.0, 50.0), Point::at(10.0, 100.0)]));
        // The points and the legend's.
        assert_eq!(svg.matches("<circle").count(), 4);
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        assert!(svg.contains("x, kpps") && svg.contains("y, %"));
        // The point without a logarithm lies on the lower edge, left.
        assert!(svg.contains("cx=\"70.0\" cy=\"284.0\""), "{svg}");
    }

    #[test]
    fn no_two_of_twelve_series_look_alike_and_what_is_counted_has_whole_marks() {
        let workers = plot(vec![Point::at(1.0, 10.0), Point::at(2.0, 20.0)]);
        let scale = Scale::over(&workers.x, [1.0, 2.0].into_iter(), (0.0, 1.0));
        assert_eq!(scale.marks, [0.0, 1.0, 2.0]);
        let twelve = Scale::over(&workers.x, [12.0].into_iter(), (0.0, 1.0));
        assert_eq!(twelve.marks.last(), Some(&12.5), "over all values");
        let looks: std::collections::BTreeSet<String> = (0..12)
            .map(|number| {
                let mut svg = String::new();
                shape(&mut svg, number, 0.0, 0.0);
                svg
            })
            .collect();
        assert_eq!(looks.len(), 12);
    }

    #[test]
    fn nothing_and_what_is_not_a_number_make_a_picture_without_points() {
        for points in [vec![], vec![Point::at(f64::NAN, 1.0), Point::at(1.0, f64::INFINITY)]] {
            let svg = lines(&plot(points));
            assert_eq!(svg.matches("<circle").count(), 1, "the legend's alone");
            assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        }
    }

    #[test]
    fn a_bar_has_a_whisker_a_dot_for_each_measurement_and_its_number() {
        let row = |name: &str, own, cell| Row { name: name.to_owned(), own, cells: vec![cell], remark: None };
        let table = Table {
            of: "who".into(),
            columns: vec![Column::new("rate", "packets/s").larger()],
            rows: vec![row("we", true, Figure::of_values([5e5, 6e5, 7e5])), row("they", false, None)],
            bars: true,
        };
        let svg = bars(&table);
        assert_eq!((svg.matches("class=\"sample").count(), svg.matches("class=\"whisker").count()), (3, 1));
        assert!(svg.contains(">600 k</text>") && svg.contains("not measured") && svg.contains("→ better"), "{svg}");
    }
}
