//! A report in a terminal.

use std::fmt::Write as _;

use comfy_table::presets::UTF8_BORDERS_ONLY;
use comfy_table::{Cell, CellAlignment};

use super::number::short;
use super::{Figure, Plot, Report, Section, Table};

/// The whole report.
pub(super) fn text(report: &Report) -> String {
    let mut text = format!("{}\n{}\n", report.title, report.machine.summary());
    let versions: Vec<String> =
        report.machine.versions.iter().map(|(name, version)| format!("{name} {version}")).collect();
    // Writing to a string does not fail.
    let _ = writeln!(text, "{}; {}, {:.0} s", versions.join(", "), report.run.started, report.run.seconds);
    if report.run.quick {
        text += "note: quick: this shows that it works, not how fast it is\n";
    }
    for note in &report.notes {
        let _ = writeln!(text, "note: {note}");
    }
    for section in &report.sections {
        write_section(&mut text, section);
    }
    text
}

fn write_section(text: &mut String, section: &Section) {
    let _ = writeln!(text, "\n{}", section.title);
    if !section.text.is_empty() {
        let _ = writeln!(text, "{}", section.text);
    }
    for table in &section.tables {
        let _ = writeln!(text, "{}", drawn(table));
    }
    for plot in &section.plots {
        write_plot(text, plot);
    }
    for note in &section.notes {
        let _ = writeln!(text, "note: {note}");
    }
}

fn drawn(table: &Table) -> comfy_table::Table {
    let mut drawn = comfy_table::Table::new();
    drawn.load_style(UTF8_BORDERS_ONLY);
    let headings = table
        .columns
        .iter()
        .map(|column| Cell::new(format!("{}\n{}", column.name, column.unit)).set_alignment(CellAlignment::Right));
    drawn.set_header([Cell::new(&table.of)].into_iter().chain(headings));
    for row in &table.rows {
        let name = match &row.remark {
            Some(remark) => format!("{}\n{remark}", row.name),
            None => row.name.clone(),
        };
        let cells = row.cells.iter().map(|cell| {
            let text = cell.as_ref().map_or_else(|| "—".to_owned(), figure);
            Cell::new(text).set_alignment(CellAlignment::Right)
        });
        drawn.add_row([Cell::new(name)].into_iter().chain(cells));
    }
    drawn
}

/// The median, the spread below it, and a star for each disturbed measurement.
fn figure(figure: &Figure) -> String {
    let bound = if figure.at_least() { "≥ " } else { "" };
    let stars = "*".repeat(figure.disturbed().min(3));
    let mut text = format!("{bound}{}{stars}", short(figure.median));
    if figure.is_spread() {
        let _ = write!(text, "\n{}…{}", short(figure.smallest), short(figure.largest));
    }
    text
}

fn write_plot(text: &mut String, plot: &Plot) {
    let axis = |axis: &super::Axis| match axis.unit.as_str() {
        "" => axis.name.clone(),
        unit => format!("{}, {unit}", axis.name),
    };
    let _ = writeln!(text, "{}: {} by {}", plot.title, axis(&plot.y), axis(&plot.x));
    for series in &plot.series {
        let points: Vec<String> =
            series.points.iter().map(|point| format!("{}: {}", short(point.x), short(point.y))).collect();
        let _ = writeln!(text, "  {}: {}", series.name, points.join("; "));
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::example;

    #[test]
    fn a_terminal_shows_median_spread_and_what_was_disturbed() {
        let text = example().to_text();
        assert!(text.contains("605 k*") && text.contains("598 k…612 k"), "{text}");
        assert!(text.contains("quick: this shows that it works"), "{text}");
    }
}
