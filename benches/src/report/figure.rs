//! A number that was measured some times.

use serde::{Deserialize, Serialize};

/// All that was measured of one thing, its median and its spread.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    /// The middle value; of an even number, the mean of the two in the middle.
    pub median: f64,
    /// The smallest.
    pub smallest: f64,
    /// The largest.
    pub largest: f64,
    /// In the order in which they were measured.
    pub samples: Vec<Sample>,
}

/// One measurement.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// What was measured.
    pub value: f64,
    /// Whether other load disturbed it.
    #[serde(skip_serializing_if = "is_false", default)]
    pub disturbed: bool,
    /// Whether the value is what could be shown at least, because the measuring side was the limit.
    #[serde(skip_serializing_if = "is_false", default)]
    pub at_least: bool,
}

impl Sample {
    /// A measurement that nothing disturbed.
    #[must_use]
    pub const fn new(value: f64) -> Self {
        Self { value, disturbed: false, at_least: false }
    }

    /// A measurement while other load ran.
    #[must_use]
    pub const fn disturbed(value: f64) -> Self {
        Self { value, disturbed: true, at_least: false }
    }
}

impl Figure {
    /// Of at least one number; what is not finite is left out.
    #[must_use]
    pub fn of(mut samples: Vec<Sample>) -> Option<Self> {
        samples.retain(|sample| sample.value.is_finite());
        let mut values: Vec<f64> = samples.iter().map(|sample| sample.value).collect();
        values.sort_by(f64::total_cmp);
        let (&smallest, &largest) = (values.first()?, values.last()?);
        let middle = values.len() / 2;
        let median =
            if values.len() % 2 == 1 { values[middle] } else { f64::midpoint(values[middle - 1], values[middle]) };
        Some(Self { median, smallest, largest, samples })
    }

    /// Of values that nothing disturbed.
    #[must_use]
    pub fn of_values(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        Self::of(values.into_iter().map(Sample::new).collect())
    }

    /// How many measurements were disturbed.
    #[must_use]
    pub fn disturbed(&self) -> usize {
        self.samples.iter().filter(|sample| sample.disturbed).count()
    }

    /// Whether some measurement shows a lower bound only.
    #[must_use]
    pub fn at_least(&self) -> bool {
        self.samples.iter().any(|sample| sample.at_least)
    }

    /// Whether there is a spread to show.
    #[must_use]
    pub const fn is_spread(&self) -> bool {
        self.samples.len() > 1
    }
}

const fn is_false(value: &bool) -> bool {
    !*value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_odd_number_is_one_of_them_and_of_an_even_number_lies_between_two() {
        let figure = Figure::of_values([3.0, 9.0, 1.0]).unwrap();
        assert_eq!((figure.median, figure.smallest, figure.largest), (3.0, 1.0, 9.0));
        assert_eq!(Figure::of_values([4.0, 1.0, 2.0, 100.0]).unwrap().median, 3.0);
        assert!(!Figure::of_values([7.0]).unwrap().is_spread());
    }

    #[test]
    fn what_is_not_a_number_is_no_sample() {
        assert_eq!(Figure::of_values([]), None);
        assert_eq!(Figure::of_values([f64::NAN, f64::INFINITY]), None);
        assert_eq!(Figure::of_values([f64::NAN, 2.0]).unwrap().samples.len(), 1);
    }

    #[test]
    fn samples_keep_their_order_and_their_marks() {
        let figure = Figure::of(vec![Sample::new(2.0), Sample::disturbed(1.0)]).unwrap();
        assert_eq!(figure.samples[0].value, 2.0);
        assert_eq!((figure.disturbed(), figure.at_least()), (1, false));
        let bound = Sample { at_least: true, ..Sample::new(1.0) };
        assert!(Figure::of(vec![bound]).unwrap().at_least());
    }
}
