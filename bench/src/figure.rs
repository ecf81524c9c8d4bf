//! Figures: samples of alternating runs, their median and spread, and what they are held against (interface §7).
//!
//! Always: a ratio is the figure's median divided by its reference's. Never: a figure without at least one sample.

use std::collections::BTreeMap;

use serde_json::{Value as Json, json};

use crate::error::{Error, Result};

/// Samples of figures and of what each is held against, in the order of the runs.
#[derive(Clone, Debug, Default)]
pub struct Samples {
    figures: BTreeMap<String, Vec<f64>>,
    /// By figure: each reference's name and samples, in the order of their coming.
    references: BTreeMap<String, Vec<(String, Vec<f64>)>>,
}

impl Samples {
    /// Adds the sample of one run.
    pub fn add(&mut self, figure: &str, value: f64) {
        self.figures.entry(figure.into()).or_default().push(value);
    }

    /// Adds a sample of what `figure` is held against, taken in the same run.
    pub fn hold_against(&mut self, figure: &str, reference: &str, value: f64) {
        let of_figure = self.references.entry(figure.into()).or_default();
        match of_figure.iter_mut().find(|(name, _)| name == reference) {
            Some((_, samples)) => samples.push(value),
            None => of_figure.push((reference.into(), vec![value])),
        }
    }

    /// `figure` in `unit`, once for each of its references; once without any where it has none.
    ///
    /// # Errors
    /// When it was never sampled.
    pub fn figures(&self, figure: &str, unit: &str) -> Result<Vec<Figure>> {
        let samples = self.figures.get(figure).map(Vec::as_slice).unwrap_or_default();
        let spread = Spread::of(samples).ok_or_else(|| Error::Failed(format!("there is no sample of {figure}")))?;
        let of = |reference| Figure { name: figure.into(), unit: unit.into(), spread, reference };
        let references = self.references.get(figure).into_iter().flatten();
        let held: Vec<Figure> = references
            .filter_map(|(name, samples)| Some(of(Some((name.clone(), Spread::of(samples)?.median)))))
            .collect();
        Ok(if held.is_empty() { vec![of(None)] } else { held })
    }
}

/// Median and spread of some samples.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// The middle sample; of an even number, the mean of the two in the middle.
    pub median: f64,
    /// The least.
    pub min: f64,
    /// The greatest.
    pub max: f64,
    /// How many.
    pub runs: usize,
}

impl Spread {
    /// Of `samples`; `None` when there are none.
    #[must_use]
    pub fn of(samples: &[f64]) -> Option<Self> {
        let mut sorted = samples.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let median = f64::midpoint(sorted[(sorted.len() - 1) / 2], sorted[sorted.len() / 2]);
        Some(Self { median, min, max, runs: sorted.len() })
    }
}

/// One figure, held against one reference or none.
#[derive(Clone, Debug, PartialEq)]
pub struct Figure {
    /// Its name (interface §7).
    pub name: String,
    /// Its unit, and how it was taken where that is not plain.
    pub unit: String,
    /// Its samples.
    pub spread: Spread,
    /// The reference's name and median.
    pub reference: Option<(String, f64)>,
}

impl Figure {
    /// The median divided by the reference's; `None` without a reference, or when that is zero.
    #[must_use]
    pub fn ratio(&self) -> Option<f64> {
        let (_, median) = self.reference.as_ref()?;
        (*median != 0.0).then(|| self.spread.median / median)
    }

    /// The JSON form.
    #[must_use]
    pub fn json(&self) -> Json {
        let reference = self.reference.as_ref().map(|(name, median)| json!({"name": name, "median": median}));
        json!({
            "name": self.name, "unit": self.unit, "median": self.spread.median, "min": self.spread.min,
            "max": self.spread.max, "runs": self.spread.runs, "reference": reference, "ratio": self.ratio(),
        })
    }

    /// One line for people.
    #[must_use]
    pub fn line(&self) -> String {
        let Spread { median, min, max, runs } = self.spread;
        let mut line = format!(
            "{:<40} {:>10} {} ({} - {}, {runs} runs)",
            self.name,
            number(median),
            self.unit,
            number(min),
            number(max)
        );
        if let (Some((name, reference)), Some(ratio)) = (&self.reference, self.ratio()) {
            line.push_str(&format!("\n{:<40} {:>10} {name}: ratio {ratio:.3}", "", number(*reference)));
        }
        line
    }
}

/// A number as people read it: three or four significant digits, and a letter for thousands beyond that.
#[must_use]
pub fn number(value: f64) -> String {
    let size = value.abs();
    let (scaled, letter) = match size {
        _ if size >= 1e9 => (value / 1e9, "G"),
        _ if size >= 1e6 => (value / 1e6, "M"),
        _ if size >= 1e4 => (value / 1e3, "k"),
        _ => (value, ""),
    };
    let digits = match scaled.abs() {
        size if size >= 100.0 => 0,
        size if size >= 10.0 => 1,
        size if size >= 1.0 => 2,
        _ => 3,
    };
    format!("{scaled:.digits$}{letter}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle_and_the_ratio_above_its_reference() {
        let mut samples = Samples::default();
        for value in [4.0, 1.0, 3.0, 2.0] {
            samples.add("fast_per_s", value);
        }
        samples.hold_against("fast_per_s", "floor", 5.0);
        samples.hold_against("fast_per_s", "redis", 2.5);
        samples.add("alone_s", 1.0);
        let figures = samples.figures("fast_per_s", "/s").unwrap();
        assert_eq!(figures[0].spread, Spread { median: 2.5, min: 1.0, max: 4.0, runs: 4 });
        assert_eq!(figures[0].json()["reference"], json!({"name": "floor", "median": 5.0}));
        assert_eq!(figures.iter().map(Figure::ratio).collect::<Vec<_>>(), [Some(0.5), Some(1.0)], "once for each");
        let alone = samples.figures("alone_s", "s").unwrap();
        assert_eq!((alone.len(), alone[0].ratio(), alone[0].json()["reference"].is_null()), (1, None, true));
        assert!(samples.figures("never", "s").is_err());
    }

    #[test]
    fn numbers_are_short() {
        let shown = [0.1234, 1.0, 98.76, 9999.0, 123_456.0, 2.5e9].map(number);
        assert_eq!(shown, ["0.123", "1.00", "98.8", "9999", "123k", "2.50G"]);
    }
}
