//! Types, conversions between them, and optional values. Pure.

use super::{
    super::value::Value,
    Asked, Entry,
    Form::{Function, Method},
    Outcome, time,
};

pub(super) const ENTRIES: &[Entry] = &[
    ("dyn", Function, 1, 1, |asked| Ok(asked.of[0].clone())),
    ("type", Function, 1, 1, |asked| Ok(Value::Type(asked.of[0].type_of()))),
    ("bool", Function, 1, 1, bool),
    ("int", Function, 1, 1, int),
    ("uint", Function, 1, 1, uint),
    ("double", Function, 1, 1, double),
    ("string", Function, 1, 1, string),
    ("bytes", Function, 1, 1, bytes),
    ("duration", Function, 1, 1, duration),
    ("timestamp", Function, 1, 1, timestamp),
    ("optional.of", Function, 1, 1, |asked| Ok(Value::some(asked.of[0].clone()))),
    ("optional.none", Function, 0, 0, |_| Ok(Value::Optional(None))),
    ("optional.ofNonZeroValue", Function, 1, 1, of_non_zero),
    ("optional.unwrap", Function, 1, 1, unwrap),
    ("unwrapOpt", Method, 1, 1, unwrap),
    ("hasValue", Method, 1, 1, |asked| match asked.of {
        [Value::Optional(value)] => Ok(Value::Bool(value.is_some())),
        _ => asked.no(),
    }),
    ("value", Method, 1, 1, |asked| match asked.of {
        [Value::Optional(Some(value))] => Ok(Value::clone(value)),
        _ => asked.no(),
    }),
];

fn bool(asked: &Asked<'_>) -> Outcome {
    match asked.of {
        [value @ Value::Bool(_)] => Ok(value.clone()),
        [Value::String(text)] => match &**text {
            "1" | "t" | "T" | "TRUE" | "true" | "True" => Ok(Value::Bool(true)),
            "0" | "f" | "F" | "FALSE" | "false" | "False" => Ok(Value::Bool(false)),
            _ => asked.no(),
        },
        _ => asked.no(),
    }
}

/// Digits alone, as Go reads a number of base ten.
fn whole_text(text: &str) -> Option<&str> {
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    (!digits.is_empty() && digits.bytes().all(|digit| digit.is_ascii_digit())).then_some(text)
}

#[expect(clippy::cast_possible_truncation, reason = "the bounds are checked")]
fn int(asked: &Asked<'_>) -> Outcome {
    let number = match asked.of {
        [Value::Int(number)] => Some(*number),
        [Value::Uint(number)] => i64::try_from(*number).ok(),
        // The least is refused as well: a double does not tell it from what is less.
        [Value::Double(number)] if number.abs() < 2_f64.powi(63) => Some(*number as i64),
        [Value::String(text)] => {
            asked.spend(text.len())?;
            whole_text(text).and_then(|text| text.parse().ok())
        }
        [Value::Timestamp(time)] => Some(time.seconds()),
        [Value::Duration(nanos)] => Some(*nanos),
        _ => None,
    };
    asked.or_refused(number).map(Value::Int)
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the bounds are checked")]
fn uint(asked: &Asked<'_>) -> Outcome {
    let number = match asked.of {
        [Value::Uint(number)] => Some(*number),
        [Value::Int(number)] => u64::try_from(*number).ok(),
        [Value::Double(number)] if *number >= 0.0 && *number < 2_f64.powi(64) => Some(*number as u64),
        [Value::String(text)] => {
            asked.spend(text.len())?;
            whole_text(text).filter(|text| !text.starts_with(['+', '-'])).and_then(|text| text.parse().ok())
        }
        _ => None,
    };
    asked.or_refused(number).map(Value::Uint)
}

fn double(asked: &Asked<'_>) -> Outcome {
    #[expect(clippy::cast_precision_loss, reason = "a double has not the digits of every integer")]
    let number = match asked.of {
        [Value::Double(number)] => Some(*number),
        [Value::Int(number)] => Some(*number as f64),
        [Value::Uint(number)] => Some(*number as f64),
        [Value::String(text)] => {
            asked.spend(text.len())?;
            float(text)
        }
        _ => None,
    };
    asked.or_refused(number).map(Value::Double)
}

/// As Go reads a double, but for those in base 16.
fn float(text: &str) -> Option<f64> {
    let name = text.strip_prefix(['+', '-']).unwrap_or(text).to_ascii_lowercase();
    if name == "nan" {
        return (!text.starts_with(['+', '-'])).then_some(f64::NAN);
    }
    if name == "inf" || name == "infinity" {
        return Some(if text.starts_with('-') { f64::NEG_INFINITY } else { f64::INFINITY });
    }
    let is_number = text.bytes().all(|byte| byte.is_ascii_digit() || b"+-.eE_".contains(&byte));
    let is_digit = |at: Option<usize>| at.and_then(|at| text.as_bytes().get(at)).is_some_and(u8::is_ascii_digit);
    if text.match_indices('_').any(|(at, _)| !is_digit(at.checked_sub(1)) || !is_digit(Some(at + 1))) {
        return None;
    }
    // One that is too large has no value.
    text.replace('_', "").parse().ok().filter(|number: &f64| is_number && number.is_finite())
}

/// The shortest text that reads as this double, as Go writes it by default.
pub(super) fn write_double(number: f64) -> String {
    if number.is_nan() {
        return "NaN".to_owned();
    }
    if number.is_infinite() {
        return if number > 0.0 { "+Inf" } else { "-Inf" }.to_owned();
    }
    let scientific = format!("{number:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..6).contains(&exponent) {
        return format!("{number}");
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.unsigned_abs())
}

fn string(asked: &Asked<'_>) -> Outcome {
    let text = match asked.of {
        [text @ Value::String(_)] => return Ok(text.clone()),
        [Value::Int(number)] => number.to_string(),
        [Value::Uint(number)] => number.to_string(),
        [Value::Double(number)] => write_double(*number),
        [Value::Bool(value)] => value.to_string(),
        [Value::Bytes(bytes)] => {
            asked.spend(bytes.len())?;
            asked.or_refused(std::str::from_utf8(bytes).ok())?.to_owned()
        }
        [Value::Duration(nanos)] => time::write_duration(*nanos),
        [Value::Timestamp(time)] => time.write(),
        [Value::Ip(address)] => super::net::write(address),
        [Value::Cidr(address, length)] => format!("{}/{length}", super::net::write(address)),
        _ => return asked.no(),
    };
    asked.text(text)
}

fn bytes(asked: &Asked<'_>) -> Outcome {
    match asked.of {
        [bytes @ Value::Bytes(_)] => Ok(bytes.clone()),
        [Value::String(text)] => {
            asked.may_make(text.len())?;
            Ok(Value::Bytes(text.as_bytes().into()))
        }
        _ => asked.no(),
    }
}

fn duration(asked: &Asked<'_>) -> Outcome {
    match asked.of {
        [duration @ Value::Duration(_)] => Ok(duration.clone()),
        [Value::String(text)] => {
            asked.spend(text.len())?;
            asked.or_refused(time::read_duration(text)).map(Value::Duration)
        }
        _ => asked.no(),
    }
}

fn timestamp(asked: &Asked<'_>) -> Outcome {
    match asked.of {
        [time @ Value::Timestamp(_)] => Ok(time.clone()),
        [Value::Int(seconds)] => asked.or_refused(time::Time::at(*seconds)).map(Value::Timestamp),
        [Value::String(text)] => {
            asked.spend(text.len())?;
            asked.or_refused(time::Time::read(text)).map(Value::Timestamp)
        }
        _ => asked.no(),
    }
}

fn of_non_zero(asked: &Asked<'_>) -> Outcome {
    let is_zero = match &asked.of[0] {
        Value::Null => true,
        Value::Bool(value) => !value,
        Value::Int(number) => *number == 0,
        Value::Uint(number) => *number == 0,
        Value::Double(number) => *number == 0.0,
        Value::String(text) => text.is_empty(),
        Value::Bytes(bytes) => bytes.is_empty(),
        Value::List(list) => list.items.is_empty(),
        Value::Map(map) => map.fields.is_empty(),
        Value::Duration(nanos) => *nanos == 0,
        Value::Timestamp(time) => time.is_zero(),
        _ => false,
    };
    Ok(if is_zero { Value::Optional(None) } else { Value::some(asked.of[0].clone()) })
}

fn unwrap(asked: &Asked<'_>) -> Outcome {
    let [Value::List(list)] = asked.of else { return asked.no() };
    asked.may_make(16 * list.items.len())?;
    let mut values = Vec::with_capacity(list.items.len());
    for item in &list.items {
        let Value::Optional(value) = item else { return asked.no() };
        values.extend(value.iter().map(|value| Value::clone(value)));
    }
    Ok(Value::list(values))
}
