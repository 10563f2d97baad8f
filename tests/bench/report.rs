//! What was measured, as a table and as JSON.

use std::fmt::Write as _;

use anyhow::{Context, Result};
use serde_json::{Value, json};

/// One line of the table: what it is, and the value of each trial.
pub(crate) struct Figure {
    group: &'static str,
    system: &'static str,
    name: String,
    unit: &'static str,
    trials: Vec<f64>,
}

/// All figures of a run, in the order they were measured.
#[derive(Default)]
pub(crate) struct Report(Vec<Figure>);

impl Report {
    /// Adds a figure; one without trials was not to be had, and says so.
    pub(crate) fn add(
        &mut self,
        group: &'static str,
        system: &'static str,
        name: impl Into<String>,
        unit: &'static str,
        trials: Vec<f64>,
    ) {
        self.0.push(Figure { group, system, name: name.into(), unit, trials });
    }

    /// A line a figure, those of the same name and of different systems below each other.
    ///
    /// # Errors
    /// None: writing to a `String` does not fail.
    pub(crate) fn table(&self) -> Result<String> {
        let width = self.0.iter().map(|figure| figure.name.chars().count()).max().unwrap_or(0);
        let mut table = String::new();
        let mut group = "";
        let mut lines: Vec<&Figure> = self.0.iter().collect();
        let place = |figure: &Figure| {
            let first = |same: &dyn Fn(&Figure) -> bool| self.0.iter().position(same);
            let of_group = first(&|other| other.group == figure.group);
            let of_name = first(&|other| other.group == figure.group && other.name == figure.name);
            (of_group, of_name)
        };
        lines.sort_by_key(|figure| place(figure));
        for figure in lines {
            if figure.group != group {
                group = figure.group;
                writeln!(
                    table,
                    "\n{group:width$}             {:>10} {:>10} {:>10}  {:6} {:>6}",
                    "min", "median", "max", "unit", "trials"
                )?;
            }
            let Figure { system, name, unit, trials, .. } = figure;
            match spread(trials) {
                Some((min, median, max)) => writeln!(
                    table,
                    "  {name:width$} {system:9} {min:10.2} {median:10.2} {max:10.2}  {unit:6} {:6}",
                    trials.len()
                )?,
                None => writeln!(table, "  {name:width$} {system:9} {:>10}", "none")?,
            }
        }
        Ok(table)
    }

    /// The same for programs, with each trial.
    ///
    /// # Errors
    /// When a value is no number.
    pub(crate) fn json(&self) -> Result<Value> {
        let figure = |figure: &Figure| {
            let Figure { group, system, name, unit, trials } = figure;
            let (min, median, max) = spread(trials).unwrap_or((f64::NAN, f64::NAN, f64::NAN));
            serde_json::to_value(json!({
                "group": group, "system": system, "name": name, "unit": unit,
                "min": min, "median": median, "max": max, "trials": trials,
            }))
            .context("figures are numbers")
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

/// A progress line.
#[expect(clippy::print_stderr, reason = "the progress of a command")]
pub(crate) fn say(what: &str) {
    eprintln!("bench: {what}");
}
