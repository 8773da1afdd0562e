//! Health checks of target groups.

use super::Checker;
use crate::declaration::{self, HealthCheckProtocol};
use crate::error::Problem;
use crate::health::{HealthCheck, HealthSettings, Matcher, Question};

/// Longest path, in bytes.
const LONGEST_PATH: usize = 1024;
/// Status codes that pass, unless said otherwise.
const MATCHER: &str = "200-399";

/// `key` makes the name of one of the group's keys.
pub(super) fn settings(
    checker: &mut Checker<'_>,
    key: &dyn Fn(&str) -> String,
    group: &declaration::TargetGroup,
) -> HealthSettings {
    let check = group.health_check.as_ref().map(|check| {
        let key = |field: &str| key(&format!("health_check.{field}"));
        health_check(checker, &key, check)
    });
    let mut seconds = |field: &str, value, most| checker.number(&|| key(field), value, (0, most), " seconds");
    let drain = group.unhealthy_drain_seconds.map(|value| seconds("unhealthy_drain_seconds", value, 360_000) as u32);
    let delay = group.deregistration_delay_seconds.unwrap_or(300);
    HealthSettings {
        check,
        unhealthy_drain_seconds: drain,
        deregistration_delay_seconds: seconds("deregistration_delay_seconds", delay, 3600) as u16,
        deregistration_ends_flows: group.deregistration_ends_flows.unwrap_or(false),
    }
}

fn health_check(
    checker: &mut Checker<'_>,
    key: &dyn Fn(&str) -> String,
    written: &declaration::HealthCheck,
) -> HealthCheck {
    let timeout = if written.protocol == HealthCheckProtocol::Http { 6 } else { 10 };
    let question = question(checker, key, written);
    let mut number = |field: &str, value, range, unit| checker.number(&|| key(field), value, range, unit);
    HealthCheck {
        question,
        port: written.port.map(|port| number("port", port, (1, 65_535), "") as u16),
        interval_seconds: number("interval_seconds", written.interval_seconds.unwrap_or(30), (5, 300), " seconds")
            as u16,
        timeout_seconds: number("timeout_seconds", written.timeout_seconds.unwrap_or(timeout), (2, 120), " seconds")
            as u16,
        healthy_threshold: number("healthy_threshold", written.healthy_threshold.unwrap_or(5), (2, 10), " passes")
            as u8,
        unhealthy_threshold: number(
            "unhealthy_threshold",
            written.unhealthy_threshold.unwrap_or(2),
            (2, 10),
            " failures",
        ) as u8,
    }
}

fn question(checker: &mut Checker<'_>, key: &dyn Fn(&str) -> String, written: &declaration::HealthCheck) -> Question {
    if written.protocol == HealthCheckProtocol::Tcp {
        for (field, value) in [("path", &written.path), ("matcher", &written.matcher)] {
            if let Some(value) = value {
                checker.error(key(field), value, Problem::HttpOnly);
            }
        }
        return Question::Connect;
    }
    let path = written.path.as_deref().unwrap_or("/");
    if !path.starts_with('/') || path.len() > LONGEST_PATH || !path.bytes().all(|byte| byte.is_ascii_graphic()) {
        let form = "a path; allowed is / and up to 1023 printable ASCII characters without blanks";
        checker.error(key("path"), path, Problem::Form(form.to_owned()));
    }
    let text = written.matcher.as_deref().unwrap_or(MATCHER);
    let matcher = Matcher::parse(text).or_else(|| {
        let form = "a list of status codes; allowed are codes and ranges within 200-599, such as 200-399 or 200,204";
        checker.error(key("matcher"), text, Problem::Form(form.to_owned()));
        Matcher::parse(MATCHER)
    });
    Question::Get {
        tls: written.protocol == HealthCheckProtocol::Https,
        path: path.to_owned(),
        matcher: matcher.expect("the default is a list of status codes"),
    }
}
