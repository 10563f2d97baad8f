//! `math.…`. Pure.

use std::cmp::Ordering;

use super::{super::value::Value, Asked, Entry, Form::Function, Outcome};

pub(super) const ENTRIES: &[Entry] = &[
    ("math.greatest", Function, 1, usize::MAX, |asked| best(asked, Ordering::Less)),
    ("math.least", Function, 1, usize::MAX, |asked| best(asked, Ordering::Greater)),
    ("math.ceil", Function, 1, 1, |asked| double(asked, f64::ceil)),
    ("math.floor", Function, 1, 1, |asked| double(asked, f64::floor)),
    ("math.round", Function, 1, 1, |asked| double(asked, f64::round)),
    ("math.trunc", Function, 1, 1, |asked| double(asked, f64::trunc)),
    ("math.isInf", Function, 1, 1, |asked| is(asked, f64::is_infinite)),
    ("math.isNaN", Function, 1, 1, |asked| is(asked, f64::is_nan)),
    ("math.isFinite", Function, 1, 1, |asked| is(asked, f64::is_finite)),
    ("math.abs", Function, 1, 1, abs),
    ("math.sign", Function, 1, 1, sign),
    ("math.sqrt", Function, 1, 1, sqrt),
    ("math.bitAnd", Function, 2, 2, |asked| bits(asked, |a, b| a & b)),
    ("math.bitOr", Function, 2, 2, |asked| bits(asked, |a, b| a | b)),
    ("math.bitXor", Function, 2, 2, |asked| bits(asked, |a, b| a ^ b)),
    ("math.bitNot", Function, 1, 1, not),
    ("math.bitShiftLeft", Function, 2, 2, |asked| shift(asked, u64::checked_shl)),
    ("math.bitShiftRight", Function, 2, 2, |asked| shift(asked, u64::checked_shr)),
];

/// The first that no other one beats; among several types as well.
fn best(asked: &Asked<'_>, beaten: Ordering) -> Outcome {
    let items = match asked.of {
        [Value::List(list)] => &list.items[..],
        other => other,
    };
    asked.spend(16 * items.len())?;
    let is_number = |value: &Value| matches!(value, Value::Int(_) | Value::Uint(_) | Value::Double(_));
    let Some((first, rest)) = items.split_first().filter(|(first, _)| is_number(first)) else { return asked.no() };
    let mut best = first;
    for item in rest {
        match best.compare(item) {
            Some(order) if is_number(item) => best = if order == beaten { item } else { best },
            _ => return asked.no(),
        }
    }
    Ok(best.clone())
}

fn double(asked: &Asked<'_>, by: fn(f64) -> f64) -> Outcome {
    match asked.of {
        [Value::Double(number)] => Ok(Value::Double(by(*number))),
        _ => asked.no(),
    }
}

fn is(asked: &Asked<'_>, by: fn(f64) -> bool) -> Outcome {
    match asked.of {
        [Value::Double(number)] => Ok(Value::Bool(by(*number))),
        _ => asked.no(),
    }
}

fn abs(asked: &Asked<'_>) -> Outcome {
    match asked.of {
        [Value::Int(number)] => asked.or_refused(number.checked_abs()).map(Value::Int),
        [number @ Value::Uint(_)] => Ok(number.clone()),
        [Value::Double(number)] => Ok(Value::Double(number.abs())),
        _ => asked.no(),
    }
}

fn sign(asked: &Asked<'_>) -> Outcome {
    Ok(match asked.of {
        [Value::Int(number)] => Value::Int(number.signum()),
        [Value::Uint(number)] => Value::Uint(u64::from(*number > 0)),
        [Value::Double(number)] if *number == 0.0 => Value::Double(0.0),
        [Value::Double(number)] => Value::Double(number.signum()),
        _ => return asked.no(),
    })
}

#[expect(clippy::cast_precision_loss, reason = "a double has not the digits of every integer")]
fn sqrt(asked: &Asked<'_>) -> Outcome {
    Ok(Value::Double(match asked.of {
        [Value::Int(number)] => (*number as f64).sqrt(),
        [Value::Uint(number)] => (*number as f64).sqrt(),
        [Value::Double(number)] => number.sqrt(),
        _ => return asked.no(),
    }))
}

fn bits(asked: &Asked<'_>, by: fn(u64, u64) -> u64) -> Outcome {
    Ok(match asked.of {
        [Value::Int(a), Value::Int(b)] => Value::Int(by(a.cast_unsigned(), b.cast_unsigned()).cast_signed()),
        [Value::Uint(a), Value::Uint(b)] => Value::Uint(by(*a, *b)),
        _ => return asked.no(),
    })
}

fn not(asked: &Asked<'_>) -> Outcome {
    Ok(match asked.of {
        [Value::Int(number)] => Value::Int(!number),
        [Value::Uint(number)] => Value::Uint(!number),
        _ => return asked.no(),
    })
}

/// Nothing is left of what is shifted further than it is long; to the right an int is shifted as bits.
fn shift(asked: &Asked<'_>, by: fn(u64, u32) -> Option<u64>) -> Outcome {
    let [number, Value::Int(places @ 0..)] = asked.of else { return asked.no() };
    let shifted = |bits: u64| u32::try_from(*places).ok().and_then(|places| by(bits, places)).unwrap_or(0);
    Ok(match number {
        Value::Int(number) => Value::Int(shifted(number.cast_unsigned()).cast_signed()),
        Value::Uint(number) => Value::Uint(shifted(*number)),
        _ => return asked.no(),
    })
}
