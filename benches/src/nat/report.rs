//! What was measured, as text and as JSON.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::Serialize;

use super::processor::Machine;
use super::{Contender, Line, Measured, Metric};

/// Everything that a run found.
#[derive(Debug, Serialize)]
pub struct Report {
    /// What it was measured on.
    pub machine: Machine,
    /// How often each contender had its turn at each line.
    pub rounds: usize,
    /// Seconds of one measurement.
    pub seconds: f64,
    /// What a reader must know: what was skipped and why, how threads were placed.
    pub notes: Vec<String>,
    /// Postern against the reference, larger is better: the median of the rounds' ratios. Latencies and CPU times are
    /// reference / Postern, all else is Postern / reference.
    pub ratios: BTreeMap<String, f64>,
    /// The smallest and the largest ratio of any round.
    pub spreads: BTreeMap<String, [f64; 2]>,
    /// The medians, by line and contender.
    pub lines: Vec<LineReport>,
}

/// One contender at one line.
#[derive(Debug, Serialize)]
pub struct LineReport {
    /// The line.
    pub line: Line,
    /// The contender.
    pub contender: Contender,
    /// Median, smallest and largest of each metric over the rounds.
    pub metrics: BTreeMap<Metric, Summary>,
    /// Rounds that failed, with the reason.
    pub failures: Vec<String>,
}

/// Median and spread of some values.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Summary {
    /// The middle value; of an even number, the mean of the two in the middle.
    pub median: f64,
    /// The smallest.
    pub smallest: f64,
    /// The largest.
    pub largest: f64,
}

impl Summary {
    /// Of at least one value.
    #[must_use]
    pub fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        let (&smallest, &largest) = (values.first()?, values.last()?);
        let middle = values.len() / 2;
        let median =
            if values.len() % 2 == 1 { values[middle] } else { f64::midpoint(values[middle - 1], values[middle]) };
        Some(Self { median, smallest, largest })
    }
}

/// What each turn gave: round, line, contender.
#[derive(Debug, Default)]
pub struct Turns(Vec<(usize, Line, Contender, Result<Measured, String>)>);

impl Turns {
    /// Keeps the outcome of one turn.
    pub fn add(&mut self, round: usize, line: Line, contender: Contender, outcome: Result<Measured, String>) {
        self.0.push((round, line, contender, outcome));
    }

    /// Medians by line and contender, in the order in which they first appear.
    #[must_use]
    pub fn lines(&self) -> Vec<LineReport> {
        let mut lines: Vec<LineReport> = Vec::new();
        for (_, line, contender, _) in &self.0 {
            if lines.iter().any(|report| report.line == *line && report.contender == *contender) {
                continue;
            }
            let outcomes = || self.0.iter().filter(|turn| turn.1 == *line && turn.2 == *contender).map(|turn| &turn.3);
            let mut values: BTreeMap<Metric, Vec<f64>> = BTreeMap::new();
            for (metric, value) in outcomes().flatten().flatten() {
                values.entry(*metric).or_default().push(*value);
            }
            lines.push(LineReport {
                line: *line,
                contender: *contender,
                metrics: values
                    .into_iter()
                    .filter_map(|(metric, values)| Some((metric, Summary::of(values)?)))
                    .collect(),
                failures: outcomes().filter_map(|outcome| outcome.as_ref().err().cloned()).collect(),
            });
        }
        lines
    }

    /// Postern against each reference, by name: the rounds in which both succeeded, each with its own ratio.
    #[must_use]
    pub fn ratios(&self) -> BTreeMap<String, Summary> {
        let value = |round: usize, line: Line, contender: Contender, metric: Metric| {
            let turn = self.0.iter().find(|turn| (turn.0, turn.1, turn.2) == (round, line, contender))?;
            turn.3.as_ref().ok()?.get(&metric).copied().filter(|value| *value > 0.0)
        };
        let mut ratios: BTreeMap<String, Vec<f64>> = BTreeMap::new();
        for (round, line, contender, _) in &self.0 {
            let Some(reference) = contender.reference_name() else { continue };
            for metric in line.compared() {
                let ours = value(*round, *line, Contender::Postern, *metric);
                let theirs = value(*round, *line, *contender, *metric);
                if let (Some(ours), Some(theirs)) = (ours, theirs) {
                    let ratio = if metric.larger_is_better() { ours / theirs } else { theirs / ours };
                    ratios.entry(format!("{}_vs_{reference}", line.ratio_name(*metric))).or_default().push(ratio);
                }
            }
        }
        ratios.into_iter().filter_map(|(name, values)| Some((name, Summary::of(values)?))).collect()
    }
}

impl Report {
    /// Whether Postern passed every turn, and no connection through it failed.
    #[must_use]
    pub fn passed(&self) -> bool {
        let ours = self.lines.iter().filter(|report| report.contender == Contender::Postern);
        ours.into_iter().all(|report| {
            let failed = report.metrics.get(&Metric::FailedConnections).map_or(0.0, |summary| summary.largest);
            report.failures.is_empty() && failed == 0.0
        })
    }

    /// As a JSON document.
    #[must_use]
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).unwrap_or_else(|error| format!("{{\"error\":\"{error}\"}}"))
    }

    /// As tables for a terminal.
    #[must_use]
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        let machine = &self.machine;
        let kind = if machine.virtual_machine { "virtual machine" } else { "physical machine" };
        let _ = writeln!(text, "{}, {} cores, {kind}, Linux {}", machine.cpu, machine.cores, machine.kernel);
        let _ = writeln!(
            text,
            "{} rounds in turn, {} s a measurement; medians (smallest…largest)",
            self.rounds, self.seconds
        );
        for note in &self.notes {
            let _ = writeln!(text, "note: {note}");
        }
        let mut line = None;
        for report in &self.lines {
            if line != Some(report.line) {
                line = Some(report.line);
                let _ = writeln!(text, "\n{}", report.line.title());
            }
            let _ = write!(text, "  {:<17}", report.contender.title());
            for (metric, summary) in &report.metrics {
                let (digits, unit) = (metric.digits(), metric.unit());
                let Summary { median, smallest, largest } = summary;
                let _ = write!(text, " {median:>9.digits$} {unit}");
                if self.rounds > 1 {
                    let _ = write!(text, " ({smallest:.digits$}…{largest:.digits$})");
                }
            }
            for failure in &report.failures {
                let _ = write!(text, " failed: {failure}");
            }
            text.push('\n');
        }
        if !self.ratios.is_empty() {
            let _ = writeln!(text, "\nPostern against the reference (larger is better)");
        }
        for (name, ratio) in &self.ratios {
            let [smallest, largest] = self.spreads.get(name).copied().unwrap_or([*ratio; 2]);
            let _ = writeln!(text, "  {name:<40} {ratio:>6.2}  ({smallest:.2}…{largest:.2})");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_latency_ratio_is_reference_over_ours_and_a_rate_is_ours_over_reference() {
        let mut turns = Turns::default();
        for (round, ours) in [(0, 40.0), (1, 50.0), (2, 20.0)] {
            let latency = |value: f64| Ok(Measured::from([(Metric::P50Microseconds, value)]));
            turns.add(round, Line::RoundTripTcp, Contender::Postern, latency(ours));
            turns.add(round, Line::RoundTripTcp, Contender::NftablesPinned, latency(100.0));
            let rate = |value: f64| Ok(Measured::from([(Metric::GigabitsPerSecond, value)]));
            turns.add(round, Line::Tcp1, Contender::Postern, rate(12.0));
            turns.add(round, Line::Tcp1, Contender::NftablesInline, rate(8.0));
        }
        let ratios = turns.ratios();
        assert_eq!(ratios["rtt_p50_vs_pinned"], Summary { median: 2.5, smallest: 2.0, largest: 5.0 });
        assert_eq!(ratios["tcp_1_stream_vs_inline"].median, 1.5);
        assert_eq!(ratios.len(), 2);
    }

    #[test]
    fn a_round_in_which_one_side_failed_gives_no_ratio() {
        let mut turns = Turns::default();
        turns.add(0, Line::Tcp1, Contender::Postern, Ok(Measured::from([(Metric::GigabitsPerSecond, 1.0)])));
        turns.add(0, Line::Tcp1, Contender::NftablesPinned, Err("no route".to_owned()));
        assert!(turns.ratios().is_empty());
        assert_eq!(turns.lines()[1].failures, ["no route"]);
    }
}
