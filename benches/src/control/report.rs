//! What was measured, as text and as JSON.

use std::fmt::Write as _;
use std::time::Duration;

use serde::Serialize;

use crate::nat::processor::Machine;

/// Everything that a run found.
#[derive(Debug, Serialize)]
pub struct Report {
    /// What it was measured on.
    pub machine: Machine,
    /// Whether the tables were small, to show that it works and not how fast it is.
    pub quick: bool,
    /// Endpoints of the large tables.
    pub endpoints: u32,
    /// Services of the large tables.
    pub services: u32,
    /// Targets of the large tables.
    pub targets: u32,
    /// What a reader must know.
    pub notes: Vec<String>,
    /// What was measured.
    pub figures: Vec<Figure>,
}

/// One number.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Figure {
    /// What it is.
    pub name: String,
    /// How much.
    pub value: f64,
    /// Of what.
    pub unit: &'static str,
    /// The mark: it should be no more.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub most: Option<f64>,
    /// Whether the mark holds on every machine, however slow and however small the tables are.
    #[serde(skip)]
    pub always: bool,
}

impl Figure {
    /// A number without a mark.
    #[must_use]
    pub fn new(name: impl Into<String>, value: f64, unit: &'static str) -> Self {
        Self { name: name.into(), value, unit, most: None, always: false }
    }

    /// It should be no more than this, where the tables are large and the machine is quiet.
    #[must_use]
    pub fn at_most(self, most: f64) -> Self {
        Self { most: Some(most), ..self }
    }

    /// There should be none, ever.
    #[must_use]
    pub fn none_ever(self) -> Self {
        Self { most: Some(0.0), always: true, ..self }
    }

    fn is_missed(&self) -> bool {
        self.most.is_some_and(|most| self.value > most)
    }
}

impl Report {
    /// Whether every mark that is to be judged was met.
    #[must_use]
    pub fn passed(&self) -> bool {
        !self.figures.iter().any(|figure| figure.is_missed() && (figure.always || !self.quick))
    }

    /// As JSON.
    #[must_use]
    pub fn to_json(&self) -> String {
        serde_json::json!(self).to_string()
    }

    /// For people.
    #[must_use]
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        let Self { machine, endpoints, services, targets, .. } = self;
        // Writing to a string does not fail.
        let _ = writeln!(text, "{}, {} CPUs, Linux {}", machine.cpu, machine.cores, machine.kernel);
        let _ = writeln!(text, "{endpoints} endpoints, {services} services, {targets} targets\n");
        for figure in &self.figures {
            let Figure { name, value, unit, most, .. } = figure;
            let digits = if matches!(*unit, "ms" | "s" | "µs") { 2 } else { 0 };
            let _ = write!(text, "{name:<38} {value:>12.digits$} {unit:<9}");
            if let Some(most) = most {
                let missed = if figure.is_missed() { ", MISSED" } else { "" };
                let _ = write!(text, " (at most {most}{missed})");
            }
            text.push('\n');
        }
        for note in &self.notes {
            let _ = write!(text, "\n- {note}");
        }
        text.push('\n');
        text
    }
}

/// Half took no longer, 99 of 100 took no longer, and the longest; in the order in which they are there.
#[must_use]
pub fn quantiles(mut times: Vec<Duration>) -> [Duration; 3] {
    times.sort_unstable();
    let at = |share: f64| {
        let rank = (share * times.len() as f64).ceil() as usize;
        times.get(rank.clamp(1, times.len().max(1)) - 1).copied().unwrap_or_default()
    };
    [at(0.5), at(0.99), at(1.0)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_values_that_were_measured() {
        let milliseconds = |range: std::ops::RangeInclusive<u64>| range.map(Duration::from_millis).collect();
        assert_eq!(quantiles(milliseconds(1..=200)), [100, 198, 200].map(Duration::from_millis));
        assert_eq!(quantiles(milliseconds(7..=7)), [7, 7, 7].map(Duration::from_millis));
        assert_eq!(quantiles(Vec::new()), [Duration::ZERO; 3]);
    }

    #[test]
    fn a_quick_run_is_judged_by_what_holds_always() {
        let report = |quick, figures| Report {
            machine: Machine::here(),
            quick,
            endpoints: 1,
            services: 1,
            targets: 1,
            notes: Vec::new(),
            figures,
        };
        let slow = Figure::new("time", 2.0, "s").at_most(1.0);
        let lost = Figure::new("lost", 1.0, "frames").none_ever();
        assert!(report(true, vec![slow.clone()]).passed());
        assert!(!report(false, vec![slow]).passed());
        assert!(!report(true, vec![lost.clone()]).passed());
        assert!(report(false, vec![Figure { value: 0.0, ..lost }]).passed());
    }
}
