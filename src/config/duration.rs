//! Durations as Kubernetes writes them: `15s`, `1m30s`, `500ms`, `1.5h`.

use std::time::Duration;

const NANOS_PER_SECOND: u64 = 1_000_000_000;

/// Units with their length in nanoseconds; `ms` comes before `m` because it starts with it.
const UNITS: [(&str, u64); 4] = [
    ("ms", NANOS_PER_SECOND / 1000),
    ("s", NANOS_PER_SECOND),
    ("m", 60 * NANOS_PER_SECOND),
    ("h", 3600 * NANOS_PER_SECOND),
];

/// Reads a duration; the error says what is wrong, without repeating the text.
pub(super) fn parse(text: &str) -> Result<Duration, &'static str> {
    if text.is_empty() {
        return Err("is empty");
    }
    if text.starts_with('-') {
        return Err("is negative");
    }
    let mut rest = text;
    let mut total: u64 = 0;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, tail) = rest.split_at(end);
        if number.is_empty() {
            return Err("is not a duration");
        }
        if tail.is_empty() {
            return Err("has no unit");
        }
        let (unit, nanos) = UNITS.into_iter().find(|(unit, _)| tail.starts_with(unit)).ok_or("has an unknown unit")?;
        total = nanos_of(number, nanos)?.checked_add(total).ok_or("is too long")?;
        rest = &tail[unit.len()..];
    }
    Ok(Duration::from_nanos(total))
}

fn nanos_of(number: &str, unit: u64) -> Result<u64, &'static str> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    if whole.is_empty() || fraction.is_empty() || fraction.contains('.') {
        return Err("is not a duration");
    }
    let mut nanos = whole.parse::<u64>().ok().and_then(|n| n.checked_mul(unit)).ok_or("is too long")?;
    let mut place = unit;
    for digit in fraction.bytes() {
        place /= 10;
        nanos = nanos.checked_add(u64::from(digit - b'0') * place).ok_or("is too long")?;
    }
    Ok(nanos)
}

/// Writes a duration as a file would have it.
pub(super) fn show(duration: Duration) -> String {
    let mut nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
    if nanos == 0 {
        return "0s".to_owned();
    }
    let mut text = String::new();
    for unit in ["h", "m", "s", "ms"] {
        let length = UNITS.iter().find(|(name, _)| *name == unit).map_or(1, |(_, length)| *length);
        if nanos >= length {
            text.push_str(&format!("{}{unit}", nanos / length));
            nanos %= length;
        }
    }
    if text.is_empty() { "less than 1ms".to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn reads_what_kubernetes_writes() {
        let cases = [
            ("15s", 15_000),
            ("1m30s", 90_000),
            ("500ms", 500),
            ("1h", 3_600_000),
            ("1.5s", 1500),
            ("0s", 0),
            ("2h45m30.25s", 9_930_250),
        ];
        for (text, millis) in cases {
            assert_eq!(parse(text), Ok(Duration::from_millis(millis)), "{text}");
        }
    }

    #[test]
    fn says_what_is_wrong() {
        let cases = [
            ("", "is empty"),
            ("15", "has no unit"),
            ("1m30", "has no unit"),
            ("-1s", "is negative"),
            ("1d", "has an unknown unit"),
            ("1µs", "has an unknown unit"),
            ("s", "is not a duration"),
            ("1.s", "is not a duration"),
            ("1..5s", "is not a duration"),
            (" 1s", "is not a duration"),
            ("1s ", "is not a duration"),
            ("99999999999999h", "is too long"),
            ("99999999999999999999999s", "is too long"),
        ];
        for (text, expected) in cases {
            assert_eq!(parse(text), Err(expected), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_shown_reads_back(millis in 0..1_000_000_000_000_u64) {
            let duration = Duration::from_millis(millis);
            prop_assert_eq!(parse(&show(duration)), Ok(duration));
        }

        #[test]
        fn never_panics(text in ".*") {
            let _ = parse(&text);
        }
    }
}
