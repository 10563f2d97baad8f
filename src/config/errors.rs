//! Everything that is wrong with one file, shown at once.

use std::fmt;

use serde::Serialize;

use super::raw::Position;

/// Every error of one file, in the order of the file.
#[derive(Clone, Debug, Serialize)]
pub struct Errors {
    file: String,
    errors: Vec<Violation>,
}

/// One error: where, in which field, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Violation {
    /// Line, from 1.
    pub line: u64,
    /// Column in characters, from 1.
    pub column: u64,
    /// Field, such as `kinds[0].weight`; empty when the error is about the file as a whole.
    pub path: String,
    /// What is wrong and how to put it right.
    pub message: String,
    /// The line it is about.
    pub snippet: String,
}

impl Errors {
    /// Name of the file, as it was given.
    pub fn file(&self) -> &str {
        &self.file
    }

    /// All of them, at least one.
    pub fn violations(&self) -> &[Violation] {
        &self.errors
    }
}

impl std::error::Error for Errors {}

impl fmt::Display for Errors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.errors.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            write!(f, "{}:{}:{}: ", self.file, error.line, error.column)?;
            if !error.path.is_empty() {
                write!(f, "{}: ", error.path)?;
            }
            write!(f, "{}", error.message)?;
            if !error.snippet.is_empty() {
                let number = error.line.to_string();
                let before = usize::try_from(error.column.saturating_sub(1)).unwrap_or(0);
                write!(f, "\n  {number} | {}", error.snippet)?;
                write!(f, "\n  {:width$} | {:before$}^", "", "", width = number.len())?;
            }
        }
        Ok(())
    }
}

/// Gathers violations while a file is read.
pub(crate) struct Gathered<'a> {
    file: &'a str,
    text: &'a str,
    errors: Vec<Violation>,
}

/// A longer line would fill the terminal with what is not the point.
const SNIPPET_MAX: usize = 160;

impl<'a> Gathered<'a> {
    pub(crate) fn new(file: &'a str, text: &'a str) -> Self {
        Self { file, text, errors: Vec::new() }
    }

    pub(crate) fn add(&mut self, at: Position, path: &str, message: impl Into<String>) {
        let line = usize::try_from(at.line.saturating_sub(1)).ok().and_then(|n| self.text.lines().nth(n));
        let snippet = line
            .map(str::trim_end)
            .filter(|line| {
                let length = line.chars().count();
                length <= SNIPPET_MAX && at.column <= length as u64 + 1 && !line.chars().any(|c| c.is_control())
            })
            .unwrap_or_default();
        self.errors.push(Violation {
            line: at.line,
            column: at.column,
            path: path.to_owned(),
            message: message.into(),
            snippet: snippet.to_owned(),
        });
    }

    pub(crate) fn count(&self) -> usize {
        self.errors.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.errors.is_empty()
    }

    pub(crate) fn into_errors(mut self) -> Errors {
        self.errors.sort_by_key(|error| (error.line, error.column));
        self.errors.dedup();
        Errors { file: self.file.to_owned(), errors: self.errors }
    }
}
