//! What a method found, as a report document: tables, and loss by rate, latency by load, rate by flows.

use std::time::SystemTime;

use super::report::{Report, Results};
use super::{connections, latency, ndr, tcp, throughput};
use crate::report::{self, Axis, Column, Figure, Plot, Point, Row, Sample, Section, Series, Table};
use crate::search::Trial;
use crate::search::mlr::Bound;
use crate::search::rate::Throughput;
use crate::traffic::stream::Sizes;

impl Report {
    /// As a document of a run that began at `since`.
    #[must_use]
    pub fn to_document(&self, since: SystemTime) -> report::Report {
        let mut document = report::Report::new(format!("postern bench {}", self.method), since, self.quick);
        document.notes.clone_from(&self.notes);
        let section = match &self.results {
            Results::Throughput(found) => of_throughput(found),
            Results::Ndr(found) => of_ndr(found),
            Results::Latency(found) => of_latency(found),
            Results::Connections(found) => of_connections(found),
            Results::Tcp(found) => of_tcp(found),
            // Few numbers, best told in words.
            Results::Reconf(found) => in_words("Blocked time", |text| found.write(text)),
            Results::Traffic(found) => in_words("Traffic", |text| found.write(text)),
        };
        document.sections.push(section);
        document
    }
}

fn in_words(title: &str, write: impl FnOnce(&mut String)) -> Section {
    let mut text = String::new();
    write(&mut text);
    let notes = text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect();
    Section { notes, ..Section::new(title, "") }
}

fn of_throughput(found: &throughput::Found) -> Section {
    let mut section = Section::new(
        "Throughput",
        "The highest rate at which no frame is lost (RFC 2544 §26.1), and what is forwarded when frames are sent flat out.",
    );
    let rows = found.sizes.iter().map(|size| {
        let flat_out = &size.flat_out;
        let received = flat_out.counts.received as f64 / flat_out.counts.sent.max(1) as f64;
        row(
            size.size,
            vec![without_loss(&size.throughput), one(flat_out.pace.achieved * received), one(flat_out.pace.achieved)],
        )
    });
    section.tables.push(by_size(
        vec![
            Column::new("without loss", "frames/s").larger(),
            Column::new("forwarded flat out", "frames/s").larger(),
            Column::new("sent flat out", "frames/s"),
        ],
        rows.collect(),
    ));
    section
        .plots
        .push(loss_by_rate(found.sizes.iter().map(|size| (size.size, size.trials.iter().chain(&size.loss_by_rate)))));
    section
}

fn of_ndr(found: &ndr::Found) -> Section {
    let mut section = Section::new("NDR and PDR", "The rates without loss and with 0.5 % of loss, by MLRsearch.");
    let names: Vec<&str> =
        found.sizes.first().into_iter().flat_map(|size| size.goals.iter().map(|(goal, _)| goal.name)).collect();
    let rows =
        found.sizes.iter().map(|size| row(size.size, size.goals.iter().map(|(_, bound)| bounded(bound)).collect()));
    let columns = names.into_iter().map(|name| Column::new(name, "frames/s").larger()).collect();
    section.tables.push(by_size(columns, rows.collect()));
    section.plots.push(loss_by_rate(found.sizes.iter().map(|size| (size.size, size.trials.iter()))));
    section
}

fn of_latency(found: &latency::Found) -> Section {
    let mut section = Section::new("Latency", "From before the frame is sent until it is received, by load.");
    for size in &found.sizes {
        let measured = || size.loads.iter().filter_map(|at| Some((at, at.measured.counts.latency?)));
        let rows = measured().map(|(at, latency)| Row {
            name: format!("{:.0} % of PDR", at.share * 100.0),
            own: true,
            cells: [at.measured.load, latency.p50, latency.p99, latency.p999, latency.max].map(one).into(),
            remark: None,
        });
        let columns = ["p50", "p99", "p99.9", "largest"].map(|name| Column::new(name, "µs").smaller());
        let columns = [Column::new("load", "frames/s")].into_iter().chain(columns).collect();
        section.tables.push(Table { of: format!("{} bytes", size.size), columns, rows: rows.collect(), bars: false });
        let series = |name: &str, value: &dyn Fn(&crate::traffic::histogram::Quantiles) -> f64| Series {
            name: name.to_owned(),
            points: measured().map(|(at, latency)| Point::at(at.measured.load, value(&latency))).collect(),
        };
        section.plots.push(Plot {
            title: format!("Latency by load, {} bytes", size.size),
            x: Axis::new("load", "frames/s"),
            y: Axis::new("latency", "µs").logarithmic(),
            series: vec![
                series("p50", &|latency| latency.p50),
                series("p99", &|latency| latency.p99),
                series("p99.9", &|latency| latency.p999),
                series("largest", &|latency| latency.max),
            ],
        });
    }
    section
}

fn of_connections(found: &connections::Found) -> Section {
    let mut section = in_words("Connections (RFC 9693)", |text| found.write(text));
    let points: Vec<Point> = [(found.few_flows, &found.few), (found.full_flows, &found.full)]
        .into_iter()
        .filter_map(|(flows, throughput)| Some(Point::at(flows.into(), throughput.rate()?)))
        .collect();
    section.plots.push(Plot {
        title: "Rate without loss by flows".to_owned(),
        x: Axis::new("flows", "").logarithmic(),
        y: Axis::new("rate", "frames/s"),
        series: vec![Series { name: "throughput".to_owned(), points }],
    });
    section
}

fn of_tcp(found: &tcp::Found) -> Section {
    let mut section = Section::new("TCP", "Between the kernel's own stacks.");
    for (line, measured) in &found.lines {
        let columns = measured.keys().map(|metric| Column::new(metric.unit(), "")).collect();
        let cells = measured.values().map(|value| one(*value)).collect();
        let rows = vec![Row { name: "Postern".to_owned(), own: true, cells, remark: None }];
        section.tables.push(Table { of: line.title().to_owned(), columns, rows, bars: false });
    }
    section
}

fn by_size(columns: Vec<Column>, rows: Vec<Row>) -> Table {
    Table { of: "frame size, bytes".to_owned(), columns, rows, bars: true }
}

fn row(size: Sizes, cells: Vec<Option<Figure>>) -> Row {
    Row { name: size.to_string(), own: true, cells, remark: None }
}

fn one(value: f64) -> Option<Figure> {
    Figure::of_values([value])
}

fn without_loss(throughput: &Throughput) -> Option<Figure> {
    let at_least = matches!(throughput, Throughput::Ceiling { .. } | Throughput::GeneratorBound { .. });
    Figure::of(vec![Sample { at_least, ..Sample::new(throughput.rate()?) }])
}

fn bounded(bound: &Bound) -> Option<Figure> {
    let (value, at_least) = match *bound {
        Bound::Found { load, .. } => (Some(load), false),
        Bound::Ceiling { load, .. } => (Some(load), true),
        Bound::GeneratorBound { load } => (load, true),
        _ => (None, false),
    };
    Figure::of(vec![Sample { at_least, ..Sample::new(value?) }])
}

/// Every trial of which the generator was up to; trials at one load are one point.
fn loss_by_rate<'t>(sizes: impl Iterator<Item = (Sizes, impl Iterator<Item = &'t Trial>)>) -> Plot {
    let series = sizes.map(|(size, trials)| {
        let mut trials: Vec<&Trial> = trials.filter(|trial| trial.paced).collect();
        trials.sort_by(|one, other| one.load.total_cmp(&other.load));
        let loads = trials.chunk_by(|one, other| one.load == other.load);
        let points = loads.filter_map(|same| {
            let losses = Figure::of_values(same.iter().map(|trial| trial.loss_ratio() * 100.0))?;
            Some(Point::of(same[0].load, &losses))
        });
        Series { name: format!("{size} bytes"), points: points.collect() }
    });
    Plot {
        title: "Loss by rate".to_owned(),
        x: Axis::new("offered", "frames/s"),
        y: Axis::new("lost", "%"),
        series: series.collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loss_is_drawn_by_rate_without_trials_that_say_nothing_of_the_device() {
        let trial = |load, received, paced| Trial { load, seconds: 1.0, sent: 100, received, paced };
        let trials = [trial(200.0, 50, true), trial(100.0, 100, true), trial(300.0, 0, false), trial(200.0, 70, true)];
        let plot = loss_by_rate([(Sizes::Fixed(64), trials.iter())].into_iter());
        let drawn: Vec<(f64, f64)> = plot.series[0].points.iter().map(|point| (point.x, point.y)).collect();
        assert_eq!(drawn, [(100.0, 0.0), (200.0, 40.0)]);
        assert_eq!(plot.series[0].points[1].spread, Some([30.0, 50.0]));
    }

    #[test]
    fn a_lower_bound_is_marked_as_one() {
        assert!(without_loss(&Throughput::GeneratorBound { rate: Some(5.0) }).unwrap().at_least());
        assert!(!without_loss(&Throughput::Found { rate: 5.0, lossy: 6.0 }).unwrap().at_least());
        assert_eq!(without_loss(&Throughput::NeverLossFree { lowest: 1.0, loss_ratio: 0.5 }), None);
    }
}
