//! Semantic versions. Pure.

use std::cmp::Ordering;

use super::{
    super::value::Value,
    Asked, Entry,
    Form::{Function, Method},
    Outcome,
};

pub(super) const ENTRIES: &[Entry] = &[
    ("semver", Function, 1, 2, |asked| {
        let version = asked.or_refused(read(asked)?)?;
        asked.may_make(usize::try_from(version.size()).unwrap_or(usize::MAX))?;
        Ok(Value::Semver(version.into()))
    }),
    ("isSemver", Function, 1, 2, |asked| Ok(Value::Bool(read(asked)?.is_some()))),
    ("major", Method, 1, 1, |asked| number(asked, 0)),
    ("minor", Method, 1, 1, |asked| number(asked, 1)),
    ("patch", Method, 1, 1, |asked| number(asked, 2)),
];

/// A version. What it was built from does not count when versions are compared.
#[derive(Debug)]
pub(in super::super) struct Version {
    numbers: [u64; 3],
    before: Vec<Part>,
    text: String,
}

/// A part of what stands before a release.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    Number(u64),
    Text(String),
}

impl Version {
    pub(in super::super) fn size(&self) -> u64 {
        2 * self.text.len() as u64
    }

    #[cfg(test)]
    pub(in super::super) fn text(&self) -> &str {
        &self.text
    }

    pub(in super::super) fn compare(&self, other: &Self) -> Ordering {
        // One with something before the release is before it.
        let released = |version: &Self| version.before.is_empty();
        self.numbers
            .cmp(&other.numbers)
            .then_with(|| released(self).cmp(&released(other)))
            .then_with(|| self.before.cmp(&other.before))
    }

    fn read(text: &str) -> Option<Self> {
        let (version, build) = text.split_once('+').map_or((text, None), |(version, build)| (version, Some(build)));
        let mut parts = version.splitn(3, '.');
        let (major, minor, rest) = (parts.next()?, parts.next()?, parts.next()?);
        let (patch, before) = rest.split_once('-').map_or((rest, None), |(patch, before)| (patch, Some(before)));
        let mut read = Vec::new();
        for part in before.into_iter().flat_map(|before| before.split('.')) {
            read.push(match whole(part) {
                Some(number) => Part::Number(number),
                None if is_digits(part) || !is_word(part) => return None,
                None => Part::Text(part.to_owned()),
            });
        }
        if build.is_some_and(|build| !build.split('.').all(is_word)) {
            return None;
        }
        let numbers = [whole(major)?, whole(minor)?, whole(patch)?];
        Some(Self { numbers, before: read, text: text.to_owned() })
    }

    /// One that is short, begins with `v` or has leading zeros.
    fn read_leniently(text: &str) -> Option<Self> {
        let text = text.strip_prefix('v').unwrap_or(text);
        let mut parts: Vec<String> = Vec::new();
        for part in text.splitn(3, '.') {
            let trimmed = if part.len() > 1 { part.trim_start_matches('0') } else { part };
            let is_number = trimmed.starts_with(|digit: char| digit.is_ascii_digit());
            parts.push(if part.len() > 1 && !is_number { format!("0{trimmed}") } else { trimmed.to_owned() });
        }
        if parts.len() < 3 && parts.last()?.contains(['+', '-']) {
            return None;
        }
        parts.resize(3, "0".to_owned());
        Self::read(&parts.join("."))
    }
}

fn is_digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|digit| digit.is_ascii_digit())
}

fn is_word(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

/// Digits without leading zeros.
fn whole(text: &str) -> Option<u64> {
    (is_digits(text) && (text == "0" || !text.starts_with('0'))).then(|| text.parse().ok()).flatten()
}

fn read(asked: &Asked<'_>) -> Result<Option<Version>, super::Halt> {
    let (text, is_lenient) = match asked.of {
        [Value::String(text)] => (text, false),
        [Value::String(text), Value::Bool(is_lenient)] => (text, *is_lenient),
        _ => return asked.no(),
    };
    asked.spend(4 * text.len())?;
    Ok(if is_lenient { Version::read_leniently(text) } else { Version::read(text) })
}

fn number(asked: &Asked<'_>, which: usize) -> Outcome {
    match asked.of {
        [Value::Semver(version)] => Ok(Value::Int(version.numbers[which].cast_signed())),
        _ => asked.no(),
    }
}
