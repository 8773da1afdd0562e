//! Numbers for people, and where the marks of an axis are.

/// Three digits that count, and k, M or G for thousands.
pub(super) fn short(value: f64) -> String {
    let size = value.abs();
    let (value, suffix) = match size {
        0.0 => return "0".to_owned(),
        _ if size >= 999.5e6 => (value / 1e9, " G"),
        _ if size >= 999.5e3 => (value / 1e6, " M"),
        _ if size >= 9_999.5 => (value / 1e3, " k"),
        _ => (value, ""),
    };
    let digits = match value.abs() {
        size if size >= 99.95 => 0,
        size if size >= 9.995 => 1,
        size if size >= 0.0995 => 2,
        size if size >= 0.00095 => 4,
        _ => return format!("{value:.1e}{suffix}"),
    };
    format!("{value:.digits$}{suffix}")
}

/// A mark of an axis: as short as it can be.
pub(super) fn mark(value: f64) -> String {
    let text = short(value);
    let (number, suffix) = text.split_once(' ').unwrap_or((&text, ""));
    let number = if number.contains('.') && !number.contains('e') {
        number.trim_end_matches('0').trim_end_matches('.')
    } else {
        number
    };
    if suffix.is_empty() { number.to_owned() } else { format!("{number} {suffix}") }
}

/// Round values that divide `0…highest` in some four to eight parts; the last is not below `highest`.
pub(super) fn linear_marks(highest: f64) -> Vec<f64> {
    let highest = if highest.is_finite() && highest > 0.0 { highest } else { 1.0 };
    let rough = highest / 5.0;
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 2.5, 5.0, 10.0].into_iter().map(|part| part * power).find(|step| *step >= rough);
    let step = step.unwrap_or(rough);
    let count = (highest / step - 1e-9).ceil().max(1.0) as usize;
    (0..=count).map(|at| at as f64 * step).collect()
}

/// Powers of ten from not above `lowest` to not below `highest`, both above zero; with 2 and 5 between them where they are few.
pub(super) fn logarithmic_marks(lowest: f64, highest: f64) -> Vec<f64> {
    let (first, last) = (lowest.log10().floor() as i32, (highest.log10() - 1e-9).ceil() as i32);
    let last = last.max(first + 1);
    let parts: &[f64] = if last - first <= 2 { &[1.0, 2.0, 5.0] } else { &[1.0] };
    let within = (first..last).flat_map(|power| parts.iter().map(move |part| part * 10f64.powi(power)));
    within.chain([10f64.powi(last)]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_digits_count_whatever_the_size() {
        let cases = [
            (0.0, "0"),
            (1.0, "1.00"),
            (0.123_456, "0.12"),
            (0.012_345, "0.0123"),
            (12.345, "12.3"),
            (999.4, "999"),
            (1234.0, "1234"),
            (612_345.0, "612 k"),
            (999_600.0, "1.00 M"),
            (1_480_000.0, "1.48 M"),
            (2.5e9, "2.50 G"),
            (0.000_012, "1.2e-5"),
            (-12.345, "-12.3"),
        ];
        for (value, text) in cases {
            assert_eq!(short(value), text);
        }
        assert_eq!((mark(20_000.0), mark(2.5), mark(100.0)), ("20 k".into(), "2.5".into(), "100".into()));
    }

    #[test]
    fn marks_are_round_and_reach_over_all_values() {
        assert_eq!(linear_marks(612_345.0).last(), Some(&800_000.0));
        assert_eq!(linear_marks(1.0), [0.0, 0.2, 0.4, 0.600_000_000_000_000_1, 0.8, 1.0]);
        for highest in [1e-9, 0.3, 7.0, 99.0, 1e12, 0.0, f64::NAN] {
            let marks = linear_marks(highest);
            assert!(
                (2..=11).contains(&marks.len()) && (*marks.last().unwrap() >= highest || highest.is_nan()),
                "{highest}: {marks:?}"
            );
        }
        assert_eq!(logarithmic_marks(1.0, 100.0), [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0]);
        assert_eq!(logarithmic_marks(64.0, 1e6), [10.0, 100.0, 1000.0, 1e4, 1e5, 1e6]);
        assert_eq!(logarithmic_marks(5.0, 5.0).len(), 4);
    }
}
