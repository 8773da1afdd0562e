//! Hours and months of UTC.

use std::fmt;
use std::str::FromStr;

/// Milliseconds of an hour.
const HOUR: u64 = 3_600_000;

/// A month of UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Month {
    year: u16,
    month: u8,
}

/// The hour, counted from 1970, in which a time in milliseconds since 1970 lies.
#[must_use]
pub const fn hour_of(time: u64) -> u64 {
    time / HOUR
}

impl Month {
    /// The month in which a time in milliseconds since 1970 lies.
    #[must_use]
    pub fn at(time: u64) -> Self {
        let mut days = time / (24 * HOUR);
        let mut year = 1970_u16;
        while year < 9999 && days >= u64::from(days_of_year(year)) {
            days -= u64::from(days_of_year(year));
            year += 1;
        }
        let mut month = 1;
        while month < 12 && days >= u64::from(days_of_month(year, month)) {
            days -= u64::from(days_of_month(year, month));
            month += 1;
        }
        Self { year, month }
    }

    /// The month in which an hour of [`hour_of`] lies.
    #[must_use]
    pub fn of_hour(hour: u64) -> Self {
        Self::at(hour.saturating_mul(HOUR))
    }
}

const fn is_leap(year: u16) -> bool {
    year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
}

const fn days_of_year(year: u16) -> u16 {
    if is_leap(year) { 366 } else { 365 }
}

const fn days_of_month(year: u16, month: u8) -> u8 {
    match month {
        2 if is_leap(year) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

impl fmt::Display for Month {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04}-{:02}", self.year, self.month)
    }
}

impl FromStr for Month {
    type Err = ();

    /// Reads `2026-11`.
    fn from_str(text: &str) -> Result<Self, ()> {
        let (year, month) = text.split_once('-').ok_or(())?;
        let digits = |text: &str, length| text.len() == length && text.bytes().all(|byte| byte.is_ascii_digit());
        if !digits(year, 4) || !digits(month, 2) {
            return Err(());
        }
        let (year, month) = (year.parse().map_err(|_| ())?, month.parse().map_err(|_| ())?);
        if (1970..=9999).contains(&year) && (1..=12).contains(&month) { Ok(Self { year, month }) } else { Err(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_lies_in_its_month_of_utc() {
        for (time, month) in [
            (0, "1970-01"),
            (951_782_399_999, "2000-02"),
            (951_868_799_999, "2000-02"),
            (951_868_800_000, "2000-03"),
            (1_796_083_199_999, "2026-11"),
            (1_796_083_200_000, "2026-12"),
            (1_798_761_599_999, "2026-12"),
            (1_798_761_600_000, "2027-01"),
        ] {
            assert_eq!(Month::at(time).to_string(), month, "{time}");
            assert_eq!(month.parse(), Ok(Month::at(time)));
        }
        // Far beyond any clock it ends in the last month that can be written.
        assert_eq!(Month::at(u64::MAX).to_string(), "9999-12");
    }

    #[test]
    fn what_is_no_month_is_refused() {
        for text in ["", "2026", "2026-13", "2026-00", "26-11", "2026-1", "2026-+1", "+026-11", "1969-12", "2026-11-01"]
        {
            assert_eq!(text.parse::<Month>(), Err(()), "{text}");
        }
    }
}
