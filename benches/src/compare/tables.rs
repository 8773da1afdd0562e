//! Turns as sections of a report.

use std::collections::BTreeSet;

use super::{CompareError, Contender, Line, Outcome, Turn, Used};
use crate::nat::Metric;
use crate::report::{Axis, Column, Figure, Plot, Point, Row, Sample, Section, Series, Table};

/// One turn in a few words.
pub(super) fn told(line: Line, outcome: &Result<(Outcome, Used), CompareError>) -> String {
    let (outcome, used) = match outcome {
        Ok(measured) => measured,
        Err(error) => return format!("failed: {error}"),
    };
    let numbers = line.metrics().iter().filter_map(|metric| {
        let value = outcome.measured.get(metric)?;
        Some(format!("{value:.*} {}", metric.digits(), metric.unit()))
    });
    let mut text = numbers.collect::<Vec<_>>().join(", ");
    if outcome.at_least {
        text = format!("at least {text}");
    }
    if used.is_disturbed() {
        let who = used.culprit.as_deref().map_or_else(String::new, |name| format!(", most of it by {name}"));
        text += &format!(" (disturbed: others used {:.2} CPUs{who})", used.disturbance());
    }
    text
}

/// Whether Postern passed every turn, and no connection through it failed.
pub(super) fn passed(turns: &[Turn]) -> bool {
    turns.iter().filter(|turn| turn.contender.is_own()).all(|turn| {
        let failed =
            |(outcome, _): &(Outcome, Used)| outcome.measured.get(&Metric::FailedConnections).copied().unwrap_or(0.0);
        // That there is no rate without loss is a result, and on a busy machine no surprise.
        match &turn.outcome {
            Ok(measured) => failed(measured) == 0.0,
            Err(_) => turn.line == Line::LossFree,
        }
    })
}

/// What is to be said of all lines together.
pub(super) fn notes(turns: &[Turn]) -> Vec<String> {
    let used: Vec<&Used> = turns.iter().filter_map(|turn| Some(&turn.outcome.as_ref().ok()?.1)).collect();
    let disturbed = used.iter().filter(|used| used.is_disturbed()).count();
    let failed = turns.iter().filter(|turn| turn.outcome.is_err()).count();
    let mut notes = Vec::new();
    if disturbed > 0 {
        let culprits: BTreeSet<&str> = used.iter().filter_map(|used| used.culprit.as_deref()).collect();
        let who = culprits.into_iter().take(8).collect::<Vec<_>>().join(", ");
        let who = if who.is_empty() { "the hypervisor" } else { &who };
        notes
            .push(format!("{disturbed} of {} turns were disturbed by other load ({who}); they are marked", used.len()));
    }
    if failed > 0 {
        notes.push(format!("{failed} of {} turns failed; each is named where its line stands", turns.len()));
    }
    notes
}

/// A section for each line that ran, in order.
pub(super) fn sections(turns: &[Turn], contenders: &[Contender], quick: bool) -> Vec<Section> {
    let lines = Line::ALL.into_iter().filter(|line| turns.iter().any(|turn| turn.line == *line));
    let mut sections: Vec<Section> = lines.map(|line| section(turns, contenders, line, quick)).collect();
    sections.extend(by_flows(turns, contenders, quick));
    sections
}

fn section(turns: &[Turn], contenders: &[Contender], line: Line, quick: bool) -> Section {
    let references: Vec<&Contender> =
        contenders.iter().filter(|one| matches!(one, Contender::NftablesPinned | Contender::Reflector)).collect();
    let mut section = Section::new(line.title(), line.text(quick));
    let mut columns: Vec<Column> = line.metrics().iter().map(|metric| column(*metric)).collect();
    columns.push(Column::new("user-space share of the worker", "%"));
    columns
        .extend(references.iter().map(|reference| Column::new(format!("ratio to {}", reference.name()), "").larger()));
    let mut rows = Vec::new();
    for contender in contenders {
        let own: Vec<&Turn> = of(turns, line, contender).collect();
        let failures: Vec<&str> =
            own.iter().filter_map(|turn| turn.outcome.as_ref().err().map(String::as_str)).collect();
        for turn in &own {
            if let Err(error) = &turn.outcome {
                section.notes.push(format!("{} failed in round {}: {error}", contender.name(), turn.round + 1));
            }
        }
        if own.is_empty() {
            continue;
        }
        let mut cells: Vec<Option<Figure>> = line.metrics().iter().map(|metric| figure(&own, *metric)).collect();
        cells.push(share(&own));
        cells.extend(references.iter().map(|reference| ratio(turns, line, contender, reference)));
        let remark = (!failures.is_empty()).then(|| format!("{} of {} turns failed", failures.len(), own.len()));
        rows.push(Row { name: contender.name(), own: contender.is_own(), cells, remark });
    }
    // A column in which nobody has anything says nothing.
    let used: Vec<bool> = (0..columns.len()).map(|at| rows.iter().any(|row| row.cells[at].is_some())).collect();
    for row in &mut rows {
        row.cells = row.cells.drain(..).zip(&used).filter(|(_, used)| **used).map(|(cell, _)| cell).collect();
    }
    let columns = columns.into_iter().zip(used).filter(|(_, used)| *used).map(|(column, _)| column).collect();
    section.tables.push(Table { of: "contender".to_owned(), columns, rows, bars: true });
    section
}

/// Where there are both overloads: the rate by the number of flows.
fn by_flows(turns: &[Turn], contenders: &[Contender], quick: bool) -> Option<Section> {
    let counts = [(Line::Udp64, 64.0), (Line::ManyFlows, f64::from(Line::many_flows(quick)))];
    let series: Vec<Series> = contenders
        .iter()
        .filter_map(|contender| {
            let points = counts.iter().filter_map(|(line, flows)| {
                let own: Vec<&Turn> = of(turns, *line, contender).collect();
                Some(Point::of(*flows, &figure(&own, Metric::PacketsPerSecond)?))
            });
            let points: Vec<Point> = points.collect();
            (points.len() == counts.len()).then(|| Series { name: contender.name(), points })
        })
        .collect();
    if series.is_empty() {
        return None;
    }
    let plot = Plot {
        title: "Rate by flows".to_owned(),
        x: Axis::new("flows", "").logarithmic(),
        y: Axis::new("64-byte frames forwarded", "packets/s"),
        series,
    };
    Some(Section { plots: vec![plot], ..Section::new("Flows", "What the number of flows costs at overload.") })
}

fn of<'t>(turns: &'t [Turn], line: Line, contender: &'t Contender) -> impl Iterator<Item = &'t Turn> {
    turns.iter().filter(move |turn| turn.line == line && turn.contender == *contender)
}

fn figure(own: &[&Turn], metric: Metric) -> Option<Figure> {
    let samples = own.iter().filter_map(|turn| {
        let (outcome, used) = turn.outcome.as_ref().ok()?;
        let value = *outcome.measured.get(&metric)?;
        let at_least = outcome.at_least && metric == Metric::PacketsPerSecond;
        Some(Sample { value, disturbed: used.is_disturbed(), at_least })
    });
    Figure::of(samples.collect())
}

fn share(own: &[&Turn]) -> Option<Figure> {
    let shares = own.iter().filter_map(|turn| turn.outcome.as_ref().ok()?.1.worker_user_share);
    Figure::of_values(shares.map(|share| share * 100.0))
}

/// The line's own number against a reference's, larger is better, in each round in which both succeeded.
fn ratio(turns: &[Turn], line: Line, contender: &Contender, reference: &Contender) -> Option<Figure> {
    if contender == reference {
        return None;
    }
    let metric = *line.metrics().first()?;
    let samples = of(turns, line, contender).filter_map(|ours| {
        let theirs = of(turns, line, reference).find(|theirs| theirs.round == ours.round)?;
        let ((our, our_used), (their, their_used)) = (ours.outcome.as_ref().ok()?, theirs.outcome.as_ref().ok()?);
        let (mine, other) = (our.measured.get(&metric)?, their.measured.get(&metric)?);
        let value = if metric.larger_is_better() { mine / other } else { other / mine };
        // Of two lower bounds, and against one, nothing is known.
        if their.at_least {
            return None;
        }
        let disturbed = our_used.is_disturbed() || their_used.is_disturbed();
        Some(Sample { value, disturbed, at_least: our.at_least })
    });
    Figure::of(samples.collect())
}

fn column(metric: Metric) -> Column {
    const CPU: &str = "CPU of everything";
    let (name, unit) = match metric {
        Metric::GigabitsPerSecond => ("payload", "Gbit/s"),
        Metric::CpuSecondsPerGigabyte => (CPU, "s/GB"),
        Metric::PacketsPerSecond => ("forwarded", "packets/s"),
        Metric::OfferedPerSecond => ("offered", "packets/s"),
        Metric::CpuMicrosecondsPerPacket => (CPU, "µs/packet"),
        Metric::P50Microseconds => ("p50", "µs"),
        Metric::P99Microseconds => ("p99", "µs"),
        Metric::ConnectionsPerSecond => ("connections", "per second"),
        Metric::Connections => ("tried", ""),
        Metric::FailedConnections => ("failed", ""),
        Metric::CpuMicrosecondsPerConnection => (CPU, "µs/connection"),
    };
    let column = Column::new(name, unit);
    match metric {
        _ if metric.larger_is_better() => column.larger(),
        Metric::OfferedPerSecond | Metric::Connections => column,
        _ => column.smaller(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nat::Measured;

    fn turn(round: usize, line: Line, contender: &Contender, value: f64) -> Turn {
        let measured = Measured::from([(line.metrics()[0], value)]);
        let used = Used { elapsed: 1.0, ..Used::default() };
        let outcome = Ok((Outcome { measured, at_least: false }, used));
        Turn { round, line, contender: contender.clone(), outcome }
    }

    #[test]
    fn a_ratio_is_taken_in_each_round_and_larger_is_better_also_of_latencies() {
        let (ours, theirs) = (Contender::Postern("af_packet".to_owned()), Contender::NftablesPinned);
        let rates = [turn(0, Line::Udp64, &ours, 2.0), turn(1, Line::Udp64, &ours, 20.0)];
        let theirs_rates = [turn(1, Line::Udp64, &theirs, 10.0), turn(0, Line::Udp64, &theirs, 4.0)];
        let turns: Vec<Turn> = rates.into_iter().chain(theirs_rates).collect();
        let found = ratio(&turns, Line::Udp64, &ours, &theirs).unwrap();
        assert_eq!((found.median, found.smallest, found.largest), (1.25, 0.5, 2.0));
        let turns = [turn(0, Line::RoundTrip, &ours, 40.0), turn(0, Line::RoundTrip, &theirs, 100.0)];
        assert_eq!(ratio(&turns, Line::RoundTrip, &ours, &theirs).unwrap().median, 2.5);
        assert_eq!(ratio(&turns, Line::RoundTrip, &theirs, &theirs), None);
    }

    #[test]
    fn a_turn_that_failed_is_named_and_a_disturbed_one_is_marked() {
        let (ours, peer) = (Contender::Postern("af_packet".to_owned()), Contender::Peer(0, "peer".to_owned()));
        let mut disturbed = turn(0, Line::Tcp1, &ours, 9.0);
        if let Ok((_, used)) = &mut disturbed.outcome {
            used.others = 0.5;
            used.culprit = Some("rustc".to_owned());
        }
        let failed = Turn { outcome: Err("no answer".to_owned()), ..turn(0, Line::Tcp1, &peer, 0.0) };
        let turns = [disturbed, failed];
        let sections = sections(&turns, &[ours, peer], true);
        let rows = &sections[0].tables[0].rows;
        assert_eq!((rows[0].cells[0].as_ref().unwrap().disturbed(), rows[1].cells[0].is_none()), (1, true));
        assert_eq!(rows[1].remark.as_deref(), Some("1 of 1 turns failed"));
        assert_eq!(sections[0].notes, ["peer failed in round 1: no answer"]);
        let notes = notes(&turns);
        assert!(notes[0].contains("1 of 1 turns were disturbed by other load (rustc)"), "{notes:?}");
        assert!(notes[1].contains("1 of 2 turns failed"), "{notes:?}");
        assert!(passed(&turns), "a peer's failure is not Postern's");
    }

    #[test]
    fn a_failed_turn_of_ours_or_a_failed_connection_does_not_pass() {
        let ours = Contender::Postern("af_packet".to_owned());
        let failed = |line| Turn { outcome: Err("ended".to_owned()), ..turn(0, line, &ours, 0.0) };
        assert!(!passed(&[failed(Line::Tcp1)]) && passed(&[failed(Line::LossFree)]));
        let mut connections = turn(0, Line::Connections, &ours, 100.0);
        assert!(passed(std::slice::from_ref(&connections)));
        if let Ok((outcome, _)) = &mut connections.outcome {
            outcome.measured.insert(Metric::FailedConnections, 1.0);
        }
        assert!(!passed(&[connections]));
    }

    #[test]
    fn what_was_measured_at_both_numbers_of_flows_is_drawn() {
        let (ours, theirs) = (Contender::Postern("af_packet".to_owned()), Contender::NftablesPinned);
        let turns = [
            turn(0, Line::Udp64, &ours, 6e5),
            turn(0, Line::ManyFlows, &ours, 4e5),
            turn(0, Line::Udp64, &theirs, 9e5),
        ];
        let section = by_flows(&turns, &[ours, theirs], false).unwrap();
        assert_eq!(section.plots[0].series.len(), 1);
        assert_eq!(section.plots[0].series[0].points[1], Point::at(1_048_576.0, 4e5));
    }
}
