//! What was measured, as a table and as JSON.

use std::fmt::Write as _;

use anyhow::{Context, Result};
use serde_json::{Value, json};

/// One line of the table: what it is, and the value of each trial.
pub(crate) struct Figure {
    pub(crate) name: String,
    pub(crate) unit: &'static str,
    pub(crate) trials: Vec<f64>,
}

/// All figures of a run, in the order they were measured.
#[derive(Default)]
pub(crate) struct Report(Vec<Figure>);

impl Report {
    /// Adds a figure.
    pub(crate) fn add(&mut self, name: impl Into<String>, unit: &'static str, trials: Vec<f64>) {
        self.0.push(Figure { name: name.into(), unit, trials });
    }

    /// A line a figure.
    ///
    /// # Errors
    /// When a figure has no trials.
    pub(crate) fn table(&self) -> Result<String> {
        let width = self.0.iter().map(|figure| figure.name.chars().count()).max().unwrap_or(0);
        let mut table =
            format!("{:width$} {:>10} {:>10} {:>10}  {:5} {:>6}\n", "", "min", "median", "max", "unit", "trials");
        for Figure { name, unit, trials } in &self.0 {
            let (min, median, max) = spread(trials).with_context(|| format!("no trials: {name}"))?;
            writeln!(table, "{name:width$} {min:10.2} {median:10.2} {max:10.2}  {unit:5} {:6}", trials.len())?;
        }
        Ok(table)
    }

    /// The same for programs, with each trial.
    ///
    /// # Errors
    /// When a figure has no trials.
    pub(crate) fn json(&self) -> Result<Value> {
        let figure = |Figure { name, unit, trials }: &Figure| {
            let (min, median, max) = spread(trials).with_context(|| format!("no trials: {name}"))?;
            Ok(json!({"name": name, "unit": unit, "min": min, "median": median, "max": max, "trials": trials}))
        };
        let figures = self.0.iter().map(figure).collect::<Result<Vec<_>>>()?;
        Ok(json!({ "figures": figures }))
    }
}

/// Minimum, median and maximum; nothing of nothing.
fn spread(trials: &[f64]) -> Option<(f64, f64, f64)> {
    let mut sorted = trials.to_vec();
    sorted.sort_by(f64::total_cmp);
    let (&min, &max) = (sorted.first()?, sorted.last()?);
    let half = sorted.len() / 2;
    let median = if sorted.len() % 2 == 1 { sorted[half] } else { (sorted[half - 1] + sorted[half]) / 2.0 };
    Some((min, median, max))
}
