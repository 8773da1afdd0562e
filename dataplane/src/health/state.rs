//! What is known of one target's health, as a pure state machine: probes that pass or fail, time, and what was declared
//! go in; a state and what it means for flows come out.

use postern_measurement::Now;
use postern_tables::health::HealthSettings;

use crate::control_link::target_views::TargetHealth;

/// What a state means for flows.
impl TargetHealth {
    /// Whether new flows may go to it while others of its group are there.
    #[must_use]
    pub const fn is_usable(self) -> bool {
        matches!(self, Self::Healthy | Self::Unused | Self::Unavailable)
    }

    /// Whether its flows are to be reset.
    #[must_use]
    pub const fn cuts_flows(self) -> bool {
        matches!(self, Self::Unhealthy)
    }
}

/// One target's health.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Health {
    state: TargetHealth,
    /// Passes in a row, while it is not healthy.
    passes: u8,
    /// Failures in a row, while it is not unhealthy.
    failures: u8,
    /// When [`TargetHealth::UnhealthyDraining`] and [`TargetHealth::Draining`] end.
    until: Now,
}

impl Health {
    /// A target that was just registered.
    pub(super) const fn new() -> Self {
        Self { state: TargetHealth::Initial, passes: 0, failures: 0, until: Now::from_milliseconds(0) }
    }

    pub(super) const fn state(&self) -> TargetHealth {
        self.state
    }

    /// When [`Self::pass_time`] changes something.
    pub(super) fn ends(&self) -> Option<Now> {
        matches!(self.state, TargetHealth::UnhealthyDraining | TargetHealth::Draining).then_some(self.until)
    }

    /// Applies what is declared: whether a check exists that can be made, and whether any listener uses the group.
    pub(super) fn declare(&mut self, probed: bool, used: bool) {
        let state = match (used, probed) {
            (false, _) => TargetHealth::Unused,
            (true, false) => TargetHealth::Unavailable,
            // A target that was not probed, or had been taken out, is new again.
            (true, true) => match self.state {
                TargetHealth::Unused | TargetHealth::Unavailable | TargetHealth::Draining => TargetHealth::Initial,
                state => state,
            },
        };
        if state != self.state {
            *self = Self { state, ..Self::new() };
        }
    }

    /// The target was taken out of its group.
    pub(super) const fn deregister(&mut self, settings: &HealthSettings, now: Now) {
        self.state = TargetHealth::Draining;
        self.until = now.plus_milliseconds(settings.deregistration_delay_seconds as u64 * 1000);
    }

    /// A probe passed or failed.
    pub(super) fn probed(&mut self, passed: bool, settings: &HealthSettings, now: Now) {
        let Some(check) = &settings.check else { return };
        let (passes, failures) = if passed { (self.passes + 1, 0) } else { (0, self.failures + 1) };
        (self.passes, self.failures) = (passes.min(check.healthy_threshold), failures.min(check.unhealthy_threshold));
        match self.state {
            // A new target needs one pass.
            TargetHealth::Initial if passed => self.state = TargetHealth::Healthy,
            TargetHealth::Unhealthy | TargetHealth::UnhealthyDraining if passes >= check.healthy_threshold => {
                self.state = TargetHealth::Healthy;
            }
            TargetHealth::Initial | TargetHealth::Healthy if failures >= check.unhealthy_threshold => {
                match settings.unhealthy_drain_seconds {
                    None | Some(0) => self.state = TargetHealth::Unhealthy,
                    Some(seconds) => {
                        self.state = TargetHealth::UnhealthyDraining;
                        self.until = now.plus_milliseconds(u64::from(seconds) * 1000);
                    }
                }
            }
            _ => {}
        }
    }

    /// Time has passed; true if a draining that was taken out is over and the target is to be forgotten.
    pub(super) fn pass_time(&mut self, now: Now) -> bool {
        let over = self.ends().is_some_and(|until| now >= until);
        if over && self.state == TargetHealth::UnhealthyDraining {
            self.state = TargetHealth::Unhealthy;
        }
        over && self.state == TargetHealth::Draining
    }
}

#[cfg(test)]
mod tests {
    use postern_tables::health::{HealthCheck, Question};

    use super::*;
    use TargetHealth::{Draining, Healthy, Initial, Unavailable, Unhealthy, UnhealthyDraining, Unused};

    #[derive(Clone, Copy, Debug)]
    enum Event {
        Pass,
        Fail,
        /// Seconds since the beginning.
        At(u64),
        Unused,
        Unchecked,
        Used,
        Removed,
    }
    use Event::{At, Fail, Pass, Removed, Unchecked, Used};

    fn settings(drain: Option<u32>) -> HealthSettings {
        HealthSettings {
            check: Some(HealthCheck {
                question: Question::Connect,
                port: None,
                interval_seconds: 5,
                timeout_seconds: 2,
                healthy_threshold: 3,
                unhealthy_threshold: 2,
            }),
            unhealthy_drain_seconds: drain,
            deregistration_delay_seconds: 30,
            deregistration_ends_flows: false,
        }
    }

    #[test]
    fn states_follow_probes_time_and_declarations_as_the_table_says() {
        /// The drain interval, and what each event leads to.
        type Case = (Option<u32>, &'static [(Event, TargetHealth)]);
        let cases: &[Case] = &[
            // A new target needs one pass, whatever the threshold.
            (None, &[(Pass, Healthy)]),
            (None, &[(Fail, Initial), (Pass, Healthy)]),
            (None, &[(Fail, Initial), (Fail, Unhealthy)]),
            // Failures count in a row, and so do passes.
            (None, &[(Pass, Healthy), (Fail, Healthy), (Pass, Healthy), (Fail, Healthy), (Fail, Unhealthy)]),
            (
                None,
                &[
                    (Fail, Initial),
                    (Fail, Unhealthy),
                    (Pass, Unhealthy),
                    (Pass, Unhealthy),
                    (Fail, Unhealthy),
                    (Pass, Unhealthy),
                    (Pass, Unhealthy),
                    (Pass, Healthy),
                    (Fail, Healthy),
                    (Fail, Unhealthy),
                ],
            ),
            // An unhealthy target drains first where its group says so, and may come back meanwhile.
            (
                Some(10),
                &[
                    (Pass, Healthy),
                    (Fail, Healthy),
                    (Fail, UnhealthyDraining),
                    (At(9), UnhealthyDraining),
                    (Fail, UnhealthyDraining),
                    (At(10), Unhealthy),
                ],
            ),
            (
                Some(10),
                &[
                    (Fail, Initial),
                    (Fail, UnhealthyDraining),
                    (Pass, UnhealthyDraining),
                    (Pass, UnhealthyDraining),
                    (Pass, Healthy),
                    (At(10), Healthy),
                ],
            ),
            (Some(0), &[(Fail, Initial), (Fail, Unhealthy)]),
            // Without a check, or without use, nothing is known, and what was known is forgotten.
            (None, &[(Unchecked, Unavailable), (Used, Initial), (Pass, Healthy), (Used, Healthy)]),
            (None, &[(Fail, Initial), (Event::Unused, Unused), (Used, Initial), (Fail, Initial), (Fail, Unhealthy)]),
            (None, &[(Fail, Initial), (Fail, Unhealthy), (Unchecked, Unavailable)]),
            // Taken out, and put in again before it was forgotten.
            (None, &[(Pass, Healthy), (Removed, Draining), (Fail, Draining), (At(29), Draining), (Used, Initial)]),
        ];
        for (case, (drain, steps)) in cases.iter().enumerate() {
            let settings = settings(*drain);
            let (mut health, mut now) = (Health::new(), Now::from_milliseconds(0));
            for (at, (event, expected)) in steps.iter().enumerate() {
                match event {
                    Pass => health.probed(true, &settings, now),
                    Fail => health.probed(false, &settings, now),
                    At(seconds) => {
                        now = Now::from_milliseconds(seconds * 1000);
                        assert!(!health.pass_time(now));
                    }
                    Event::Unused => health.declare(true, false),
                    Unchecked => health.declare(false, true),
                    Used => health.declare(true, true),
                    Removed => health.deregister(&settings, now),
                }
                assert_eq!(health.state(), *expected, "case {case}, step {at}: {event:?}");
            }
        }
    }

    #[test]
    fn a_target_that_was_taken_out_is_forgotten_after_its_delay() {
        let (mut health, now) = (Health::new(), Now::from_milliseconds(5000));
        health.deregister(&settings(None), now);
        assert_eq!(health.ends(), Some(Now::from_milliseconds(35_000)));
        assert!(!health.pass_time(Now::from_milliseconds(34_999)));
        assert!(health.pass_time(Now::from_milliseconds(35_000)));
    }
}
