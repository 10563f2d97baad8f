//! Durations and timestamps: read and written as Go does, of the years 1 to 9999, in time zones of the database that the
//! program brings, so that they are the same on every replica. Pure.

use std::{cmp::Ordering, sync::LazyLock};

use jiff::{
    SignedDuration, Timestamp,
    tz::{TimeZone, TimeZoneDatabase},
};

use super::{
    super::{run::Halt, value::Value},
    Asked, Entry,
    Form::Method,
};

/// The part of a civil time that a method gives.
macro_rules! part {
    ($name:literal, $part:expr) => {
        ($name, Method, 1, 2, |asked| {
            let part: fn(&Civil) -> i64 = $part;
            Ok(Value::Int(part(&civil(asked)?)))
        })
    };
}

/// The part of a time, or all of a duration in that unit.
macro_rules! unit {
    ($name:literal, $nanos:expr, $part:expr) => {
        ($name, Method, 1, 2, |asked| {
            let part: fn(&Civil) -> i64 = $part;
            match asked.of {
                [Value::Duration(nanos)] => Ok(Value::Int(nanos / $nanos)),
                _ => Ok(Value::Int(part(&civil(asked)?))),
            }
        })
    };
}

pub(super) const ENTRIES: &[Entry] = &[
    part!("getFullYear", |time| time.year),
    part!("getMonth", |time| time.month - 1),
    part!("getDate", |time| time.day),
    part!("getDayOfMonth", |time| time.day - 1),
    part!("getDayOfYear", |time| time.days - days(time.year, 1, 1)),
    // The first day of 1970 was a Thursday.
    part!("getDayOfWeek", |time| (time.days + 4).rem_euclid(7)),
    unit!("getHours", HOUR, |time| time.second / 3600),
    unit!("getMinutes", MINUTE, |time| time.second / 60 % 60),
    unit!("getSeconds", SECOND, |time| time.second % 60),
    unit!("getMilliseconds", 1_000_000, |time| time.nanos / 1_000_000),
];

const SECOND: i64 = 1_000_000_000;
const MINUTE: i64 = 60 * SECOND;
const HOUR: i64 = 60 * MINUTE;
/// The first second of the year 1 and the last of 9999, from 1970.
const FIRST: i64 = -62_135_596_800;
const LAST: i64 = 253_402_300_799;

static ZONES: LazyLock<TimeZoneDatabase> = LazyLock::new(TimeZoneDatabase::bundled);

/// A time in a zone, by the Gregorian calendar.
struct Civil {
    year: i64,
    month: i64,
    day: i64,
    /// From the first day of 1970.
    days: i64,
    /// Of the day.
    second: i64,
    nanos: i64,
}

/// The days from the first of 1970 to a date. Years are counted from March, so that the day of a leap year is the last.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = if month > 2 { year } else { year - 1 };
    let (era, of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

/// The date of so many days from the first of 1970.
fn date(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let (era, of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (year + era * 400 + i64::from(month <= 2), month, day)
}

fn days_in(year: i64, month: i64) -> i64 {
    let (next, following) = if month == 12 { (1, year + 1) } else { (month + 1, year) };
    days(following, next, 1) - days(year, month, 1)
}

/// A time, and the offset that it was written with.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct Time {
    seconds: i64,
    nanos: u32,
    offset: i32,
}

impl Time {
    fn new(nanos: i128, offset: i32) -> Option<Self> {
        let seconds = i64::try_from(nanos.div_euclid(i128::from(SECOND))).ok()?;
        let nanos = u32::try_from(nanos.rem_euclid(i128::from(SECOND))).ok()?;
        (FIRST..=LAST).contains(&seconds).then_some(Self { seconds, nanos, offset })
    }

    fn total(&self) -> i128 {
        i128::from(self.seconds) * i128::from(SECOND) + i128::from(self.nanos)
    }

    /// So many seconds from 1970.
    pub(super) fn at(seconds: i64) -> Option<Self> {
        Self::new(i128::from(seconds) * i128::from(SECOND), 0)
    }

    /// Whole seconds from 1970.
    pub(in super::super) fn seconds(&self) -> i64 {
        self.seconds
    }

    #[cfg(test)]
    pub(in super::super) fn nanos(&self) -> u32 {
        self.nanos
    }

    pub(super) fn is_zero(&self) -> bool {
        self.seconds == FIRST && self.nanos == 0
    }

    pub(super) fn in_utc(&self) -> Self {
        Self { offset: 0, ..*self }
    }

    pub(in super::super) fn plus(&self, nanos: i128) -> Option<Self> {
        Self::new(self.total() + nanos, self.offset)
    }

    fn civil(&self, offset: i64) -> Civil {
        let seconds = self.seconds + offset;
        let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
        let (year, month, day) = date(days);
        Civil { year, month, day, days, second, nanos: i64::from(self.nanos) }
    }

    /// Reads RFC 3339, of which Go takes an hour of one digit and a comma as well.
    pub(super) fn read(text: &str) -> Option<Self> {
        let number = |text: &str| {
            let is_number = !text.is_empty() && text.bytes().all(|digit| digit.is_ascii_digit());
            is_number.then(|| text.parse::<i32>().ok()).flatten()
        };
        let (date, rest) = (text.get(..10)?, text.get(10..)?.strip_prefix('T')?);
        let bytes = date.as_bytes();
        if bytes[4] != b'-' || bytes[7] != b'-' {
            return None;
        }
        let (hour, rest) = rest.split_once(':')?;
        let (minute, rest) = (rest.get(..2)?, rest.get(2..)?.strip_prefix(':')?);
        let (second, mut rest) = (rest.get(..2)?, rest.get(2..)?);
        let mut nanos = 0;
        if let Some(fraction) = rest.strip_prefix(['.', ',']) {
            let length = fraction.len() - fraction.trim_start_matches(|digit: char| digit.is_ascii_digit()).len();
            let digits = &fraction[..length];
            nanos = number(&format!("{:0<9}", &digits[..digits.len().min(9)])).filter(|_| length > 0)?;
            rest = &fraction[length..];
        }
        let offset = match rest {
            "Z" => 0,
            rest => {
                let sign = match rest.as_bytes().first()? {
                    b'+' => 1,
                    b'-' => -1,
                    _ => return None,
                };
                let (hours, minutes) = rest.get(1..)?.split_once(':')?;
                if hours.len() != 2 || minutes.len() != 2 {
                    return None;
                }
                let (hours, minutes) = (number(hours)?, number(minutes)?);
                if hours > 24 || minutes > 60 {
                    return None;
                }
                sign * (hours * 60 + minutes) * 60
            }
        };
        if hour.len() > 2 {
            return None;
        }
        let (year, month, day) = (number(&date[..4])?, number(&date[5..7])?, number(&date[8..])?);
        let (hour, minute, second) = (number(hour)?, number(minute)?, number(second)?);
        let is_day = (1..=12).contains(&month) && day >= 1 && i64::from(day) <= days_in(year.into(), month.into());
        if !is_day || hour > 23 || minute > 59 || second > 59 {
            return None;
        }
        let seconds = days(year.into(), month.into(), day.into()) * 86_400;
        let seconds = seconds + i64::from(hour * 3600 + minute * 60 + second - offset);
        Self::new(i128::from(seconds) * i128::from(SECOND) + i128::from(nanos), offset)
    }

    /// As RFC 3339 has it, with the offset that it was written with.
    pub(super) fn write(&self) -> String {
        let Civil { year, month, day, second, .. } = self.civil(self.offset.into());
        let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
        let mut text = format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}");
        if self.nanos > 0 {
            text.push_str(format!(".{:09}", self.nanos).trim_end_matches('0'));
        }
        if self.offset == 0 {
            text.push('Z');
        } else {
            let (sign, minutes) = (if self.offset < 0 { '-' } else { '+' }, self.offset.unsigned_abs() / 60);
            text.push_str(&format!("{sign}{:02}:{:02}", minutes / 60, minutes % 60));
        }
        text
    }
}

impl Ord for Time {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.seconds, self.nanos).cmp(&(other.seconds, other.nanos))
    }
}

impl PartialOrd for Time {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Time {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Time {}

/// What lies between two times, if a duration can be so long.
pub(in super::super) fn between(a: &Time, b: &Time) -> Option<i64> {
    i64::try_from(a.total() - b.total()).ok()
}

/// The time in the zone that is asked for, or in UTC.
fn civil(asked: &Asked<'_>) -> Result<Civil, Halt> {
    match asked.of {
        [Value::Timestamp(time)] => Ok(time.civil(0)),
        [Value::Timestamp(time), Value::String(name)] => {
            let unknown = || Halt::Failed(format!("{}: no such time zone", asked.function));
            Ok(time.civil(offset(name, time).ok_or_else(unknown)?))
        }
        _ => asked.no(),
    }
}

/// The seconds that a zone is east of UTC at a time: a zone by its name, or by its offset in hours and minutes.
fn offset(name: &str, time: &Time) -> Option<i64> {
    if name.is_empty() || name == "UTC" {
        return Some(0);
    }
    let Some((hours, minutes)) = name.split_once(':') else {
        // Names are of one case only; what `Local` is, each replica would say by itself.
        let zone: TimeZone = ZONES.get(name).ok().filter(|zone| zone.iana_name() == Some(name))?;
        let known = Timestamp::MIN.as_second() + 1..Timestamp::MAX.as_second();
        let at = Timestamp::from_second(time.seconds.clamp(known.start, known.end)).ok()?;
        return Some(zone.to_offset(at).seconds().into());
    };
    let whole = |text: &str| {
        let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
        let is_number = !digits.is_empty() && digits.bytes().all(|digit| digit.is_ascii_digit());
        is_number.then(|| text.parse::<i64>().ok()).flatten().filter(|number| number.unsigned_abs() < 1 << 32)
    };
    let (hour, minute) = (whole(hours)?, whole(minutes)?);
    let minute = if hours.starts_with('-') { -minute } else { minute };
    Some((hour * 60 + minute) * 60)
}

/// Reads a duration such as `1h30m`, `-1.5s` or `10ms`.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss, reason = "as Go does")]
pub(super) fn read_duration(text: &str) -> Option<i64> {
    let is_negative = text.starts_with('-');
    let mut rest = text.strip_prefix(['+', '-']).unwrap_or(text);
    if rest == "0" {
        return Some(0);
    }
    let mut total = 0_u64;
    loop {
        let digits = |text: &str| text.len() - text.trim_start_matches(|digit: char| digit.is_ascii_digit()).len();
        let length = digits(rest);
        let whole: u64 = if length == 0 { 0 } else { rest[..length].parse().ok()? };
        rest = &rest[length..];
        let (mut fraction, mut scale, mut has_fraction) = (0_u64, 1.0_f64, false);
        if let Some(after) = rest.strip_prefix('.') {
            let length = digits(after);
            has_fraction = length > 0;
            for digit in after[..length].bytes() {
                let next = fraction.checked_mul(10).and_then(|next| next.checked_add(u64::from(digit - b'0')));
                let Some(next) = next.filter(|next| *next <= 1 << 63) else { break };
                (fraction, scale) = (next, scale * 10.0);
            }
            rest = &after[length..];
        }
        if length == 0 && !has_fraction {
            return None;
        }
        let length = rest.find(|part: char| part == '.' || part.is_ascii_digit()).unwrap_or(rest.len());
        let unit: u64 = match &rest[..length] {
            "ns" => 1,
            "us" | "µs" | "μs" => 1_000,
            "ms" => 1_000_000,
            "s" => SECOND.unsigned_abs(),
            "m" => MINUTE.unsigned_abs(),
            "h" => HOUR.unsigned_abs(),
            _ => return None,
        };
        rest = &rest[length..];
        let mut nanos = whole.checked_mul(unit).filter(|nanos| *nanos <= 1 << 63)?;
        if fraction > 0 {
            nanos = nanos.checked_add((fraction as f64 * (unit as f64 / scale)) as u64)?;
        }
        total = total.checked_add(nanos).filter(|total| *total <= 1 << 63)?;
        if rest.is_empty() {
            break;
        }
    }
    if is_negative { 0_i64.checked_sub_unsigned(total) } else { i64::try_from(total).ok() }
}

/// In seconds, as JSON has it.
#[expect(clippy::cast_precision_loss, reason = "as Go does")]
pub(super) fn write_duration(nanos: i64) -> String {
    let whole = SignedDuration::from_nanos(nanos);
    let seconds = whole.as_secs() as f64 + f64::from(whole.subsec_nanos()) / 1e9;
    format!("{seconds}s")
}
