//! Quantities as Kubernetes has them: exact decimals. Pure.

use std::{borrow::Cow, cmp::Ordering};

use super::{
    super::value::Value,
    Asked, Entry,
    Form::{Function, Method},
    Outcome,
};

pub(super) const ENTRIES: &[Entry] = &[
    ("quantity", Function, 1, 1, |asked| {
        let quantity = asked.or_refused(read(asked)?)?;
        asked.may_make(usize::try_from(quantity.size()).unwrap_or(usize::MAX))?;
        Ok(Value::Quantity(quantity.into()))
    }),
    ("isQuantity", Function, 1, 1, |asked| Ok(Value::Bool(read(asked)?.is_some()))),
    ("sign", Method, 1, 1, |asked| of(asked, |quantity| Some(Value::Int(quantity.sign())))),
    ("asInteger", Method, 1, 1, |asked| of(asked, |quantity| quantity.as_int().map(Value::Int))),
    ("isInteger", Method, 1, 1, |asked| of(asked, |quantity| Some(Value::Bool(quantity.as_int().is_some())))),
    ("asApproximateFloat", Method, 1, 1, |asked| of(asked, |quantity| Some(Value::Double(quantity.as_double())))),
    ("add", Method, 2, 2, |asked| sum(asked, false)),
    ("sub", Method, 2, 2, |asked| sum(asked, true)),
];

/// The largest exponent of ten. Kubernetes takes any; what is beyond is no amount of anything.
const LARGEST: u32 = 400;

/// A quantity.
#[derive(Clone, Debug)]
pub(in super::super) enum Quantity {
    /// As long as an int is enough: `value` times ten to the `scale`.
    Small { value: i64, scale: i32 },
    /// Else digits without leading zeros, from the highest, times ten to the `scale`.
    Large { is_negative: bool, digits: Vec<u8>, scale: i32 },
}

fn read(asked: &Asked<'_>) -> Result<Option<Quantity>, super::Halt> {
    let [Value::String(text)] = asked.of else { return asked.no() };
    asked.spend(text.len())?;
    // Large ones are multiplied digit by digit.
    if text.len() > 100 {
        asked.spend(text.len().saturating_mul(100))?;
    }
    Ok(Quantity::read(text))
}

fn of(asked: &Asked<'_>, by: fn(&Quantity) -> Option<Value>) -> Outcome {
    match asked.of {
        [Value::Quantity(quantity)] => {
            asked.run.budget.spend(quantity.size())?;
            asked.or_refused(by(quantity))
        }
        _ => asked.no(),
    }
}

fn sum(asked: &Asked<'_>, is_less: bool) -> Outcome {
    let (a, b) = match asked.of {
        [Value::Quantity(a), Value::Quantity(b)] => (a, Quantity::clone(b)),
        [Value::Quantity(a), Value::Int(b)] => (a, Quantity::Small { value: *b, scale: 0 }),
        _ => return asked.no(),
    };
    // Both are written out to the same digit.
    asked.may_make(usize::try_from(a.size() + b.size()).unwrap_or(usize::MAX) + 2 * LARGEST as usize)?;
    Ok(Value::Quantity(if is_less { a.minus(b) } else { a.plus(b) }.into()))
}

impl Quantity {
    pub(in super::super) fn size(&self) -> u64 {
        match self {
            Self::Small { .. } => 16,
            Self::Large { digits, .. } => digits.len() as u64,
        }
    }

    fn read(text: &str) -> Option<Self> {
        let is_negative = text.starts_with('-');
        let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
        let length = |text: &str| text.len() - text.trim_start_matches(|digit: char| digit.is_ascii_digit()).len();
        let (whole, rest) = unsigned.split_at(length(unsigned));
        let (fraction, suffix) = match rest.strip_prefix('.') {
            Some(rest) => rest.split_at(length(rest)),
            None => ("", rest),
        };
        // Without a digit it is none of them, but for no text at all.
        if text.is_empty() {
            return None;
        }
        let whole = whole.trim_start_matches('0');
        let (base, exponent) = interpret(suffix)?;
        let written = (whole.len().max(1) + fraction.len()).min(1 << 20);
        let written = i32::try_from(written).ok()?;
        let is_exact = if base == 10 {
            18 - written >= 0 && exponent - i32::try_from(fraction.len()).ok()? >= -9
        } else {
            let whole = i32::try_from(whole.len().max(1)).ok()?;
            fraction.is_empty() && 15 - whole - exponent * 3 / 10 > 0
        };
        if is_exact {
            let value: i64 = format!("0{whole}{fraction}").parse().ok()?;
            let factor = if base == 10 { 1 } else { 1_i64.checked_shl(u32::try_from(exponent).ok()?)? };
            if let Some(value) = value.checked_mul(factor) {
                let value = if is_negative { -value } else { value };
                let scale = if base == 10 { exponent - i32::try_from(fraction.len()).ok()? } else { 0 };
                return Some(Self::Small { value, scale });
            }
        }
        let mut digits: Vec<u8> = whole.bytes().chain(fraction.bytes()).map(|digit| digit - b'0').collect();
        let mut scale = -i32::try_from(fraction.len()).ok()?;
        if base == 10 {
            scale += exponent;
        } else {
            for _ in 0..exponent {
                double(&mut digits);
            }
        }
        round_up_to_nano(&mut digits, &mut scale);
        let mut made = Self::Large { is_negative, digits: trimmed(digits), scale };
        let most = Self::Small { value: i64::MAX, scale: 0 };
        if base == 2 && made.magnitude().compare(&most).is_gt() {
            made = Self::Large { is_negative, digits: number_digits(i64::MAX.unsigned_abs()), scale: 0 };
        }
        Some(made)
    }

    fn magnitude(&self) -> Self {
        let (_, digits, scale) = self.parts();
        Self::Large { is_negative: false, digits, scale }
    }

    fn parts(&self) -> (bool, Vec<u8>, i32) {
        let is_negative = match self {
            Self::Small { value, .. } => *value < 0,
            Self::Large { is_negative, .. } => *is_negative,
        };
        let (digits, scale) = self.digits();
        (is_negative, digits.into_owned(), scale)
    }

    fn digits(&self) -> (Cow<'_, [u8]>, i32) {
        match self {
            Self::Small { value, scale } => (number_digits(value.unsigned_abs()).into(), *scale),
            Self::Large { digits, scale, .. } => (digits.into(), *scale),
        }
    }

    fn sign(&self) -> i64 {
        match self {
            Self::Small { value, .. } => value.signum(),
            Self::Large { digits, .. } if digits.is_empty() => 0,
            Self::Large { is_negative, .. } => {
                if *is_negative {
                    -1
                } else {
                    1
                }
            }
        }
    }

    /// An int, if it is kept as one. What is not written as a whole number is none, as Kubernetes has it.
    fn as_int(&self) -> Option<i64> {
        match self {
            Self::Small { value, scale } => {
                let mut scaled = *value;
                for _ in 0..u32::try_from(*scale).ok()? {
                    scaled = scaled.checked_mul(10)?;
                    if scaled == 0 {
                        break;
                    }
                }
                Some(scaled)
            }
            Self::Large { .. } => None,
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "it is an approximation")]
    fn as_double(&self) -> f64 {
        let (base, scale) = match self {
            Self::Small { value, scale } => (*value as f64, *scale),
            Self::Large { is_negative, digits, scale } => {
                let text: String = digits.iter().map(|digit| char::from(b'0' + digit)).collect();
                let base: f64 = text.parse().unwrap_or(0.0);
                (if *is_negative { -base } else { base }, *scale)
            }
        };
        if scale == 0 { base } else { base * format!("1e{scale}").parse::<f64>().unwrap_or(0.0) }
    }

    fn plus(&self, other: Self) -> Self {
        if let (Self::Small { value: a, scale: x }, Self::Small { value: b, scale: y }) = (self, &other)
            && let Some(sum) = small_sum((*a, *x), (*b, *y))
        {
            return sum;
        }
        self.exactly_plus(other.parts())
    }

    fn minus(&self, other: Self) -> Self {
        // The least int stays as it is when it is negated, as Kubernetes has it.
        if let (Self::Small { value: a, scale: x }, Self::Small { value: b, scale: y }) = (self, &other)
            && let Some(sum) = small_sum((*a, *x), (b.wrapping_neg(), *y))
        {
            return sum;
        }
        let (is_negative, digits, scale) = other.parts();
        self.exactly_plus((!is_negative, digits, scale))
    }

    fn exactly_plus(&self, b: (bool, Vec<u8>, i32)) -> Self {
        let a = self.parts();
        let scale = a.2.min(b.2);
        let (left, right) = (widened(a.1, a.2, scale), widened(b.1, b.2, scale));
        let (is_negative, digits) = if a.0 == b.0 {
            (a.0, add(&left, &right))
        } else if compare(&left, &right).is_ge() {
            (a.0, subtract(&left, &right))
        } else {
            (b.0, subtract(&right, &left))
        };
        Self::Large { is_negative, digits: trimmed(digits), scale }
    }

    pub(in super::super) fn compare(&self, other: &Self) -> Ordering {
        let (sign, other_sign) = (self.sign(), other.sign());
        if sign != other_sign || sign == 0 {
            return sign.cmp(&other_sign);
        }
        let order = self.compare_magnitudes(other);
        if sign < 0 { order.reverse() } else { order }
    }

    /// By the place of the highest digit, and then digit by digit: neither is written out to the last digit of the other.
    fn compare_magnitudes(&self, other: &Self) -> Ordering {
        let ((a, x), (b, y)) = (self.digits(), other.digits());
        let highest = |digits: &[u8], scale: i32| i128::from(digits.len() as u64) + i128::from(scale);
        let both = a.len().min(b.len());
        let is_more = |rest: &[u8]| rest.iter().any(|digit| *digit > 0);
        highest(&a, x)
            .cmp(&highest(&b, y))
            .then_with(|| a[..both].cmp(&b[..both]))
            .then_with(|| is_more(&a[both..]).cmp(&is_more(&b[both..])))
    }

    /// What it amounts to, written out.
    #[cfg(test)]
    pub(in super::super) fn amount(&self) -> String {
        let (is_negative, digits, scale) = self.parts();
        let digits = if digits.is_empty() { vec![0] } else { widened(digits, scale.max(0), 0) };
        let mut text: String = digits.iter().map(|digit| char::from(b'0' + digit)).collect();
        if scale < 0 {
            let places = scale.unsigned_abs() as usize;
            let padded = format!("{text:0>width$}", width = places + 1);
            let (whole, fraction) = padded.split_at(padded.len() - places);
            text = format!("{whole}.{fraction}").trim_end_matches('0').trim_end_matches('.').to_owned();
        }
        if is_negative && text.bytes().any(|digit| (b'1'..=b'9').contains(&digit)) { format!("-{text}") } else { text }
    }
}

/// A suffix: its base, and the exponent.
fn interpret(suffix: &str) -> Option<(i32, i32)> {
    Some(match suffix {
        "Ki" => (2, 10),
        "Mi" => (2, 20),
        "Gi" => (2, 30),
        "Ti" => (2, 40),
        "Pi" => (2, 50),
        "Ei" => (2, 60),
        "n" => (10, -9),
        "u" => (10, -6),
        "m" => (10, -3),
        "" => (10, 0),
        "k" => (10, 3),
        "M" => (10, 6),
        "G" => (10, 9),
        "T" => (10, 12),
        "P" => (10, 15),
        "E" => (10, 18),
        _ => {
            let exponent = suffix.strip_prefix(['e', 'E'])?;
            let digits = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
            let is_number = !digits.is_empty() && digits.bytes().all(|digit| digit.is_ascii_digit());
            let exponent = is_number.then(|| exponent.parse::<i32>().ok()).flatten()?;
            (10, Some(exponent).filter(|exponent| exponent.unsigned_abs() <= LARGEST)?)
        }
    })
}

fn small_sum((a, x): (i64, i32), (b, y): (i64, i32)) -> Option<Quantity> {
    let scaled = |value: i64, places: i32| (0..places).try_fold(value, |value, _| value.checked_mul(10));
    Some(match (a, b) {
        (_, 0) => Quantity::Small { value: a, scale: x },
        (0, _) => Quantity::Small { value: b, scale: y },
        _ if x > y => Quantity::Small { value: scaled(a, x - y)?.checked_add(b)?, scale: y },
        _ => Quantity::Small { value: scaled(b, y - x)?.checked_add(a)?, scale: x },
    })
}

fn number_digits(number: u64) -> Vec<u8> {
    trimmed(number.to_string().bytes().map(|digit| digit - b'0').collect())
}

fn trimmed(digits: Vec<u8>) -> Vec<u8> {
    let zeros = digits.iter().take_while(|digit| **digit == 0).count();
    digits[zeros..].to_vec()
}

/// With as many digits as another scale asks for, which is no larger.
fn widened(mut digits: Vec<u8>, scale: i32, to: i32) -> Vec<u8> {
    if !digits.is_empty() {
        digits.resize(digits.len() + usize::try_from(scale - to).unwrap_or(0), 0);
    }
    digits
}

fn double(digits: &mut Vec<u8>) {
    let mut carry = 0;
    for digit in digits.iter_mut().rev() {
        let twice = *digit * 2 + carry;
        *digit = twice % 10;
        carry = twice / 10;
    }
    if carry > 0 {
        digits.insert(0, carry);
    }
}

/// Nothing is smaller than a nano; what is more than none is not rounded to none.
fn round_up_to_nano(digits: &mut Vec<u8>, scale: &mut i32) {
    if digits.iter().all(|digit| *digit == 0) {
        return;
    }
    let Ok(beyond) = usize::try_from(-9 - *scale) else {
        *digits = widened(std::mem::take(digits), *scale, -9);
        *scale = -9;
        return;
    };
    let kept = digits.len().saturating_sub(beyond);
    let is_more = digits[kept..].iter().any(|digit| *digit > 0);
    digits.truncate(kept);
    *scale = -9;
    if is_more {
        *digits = add(digits, &[1]);
    }
}

fn compare(a: &[u8], b: &[u8]) -> Ordering {
    a.len().cmp(&b.len()).then_with(|| a.cmp(b))
}

fn add(a: &[u8], b: &[u8]) -> Vec<u8> {
    let mut sum = Vec::with_capacity(a.len().max(b.len()) + 1);
    let (mut a, mut b, mut carry) = (a.iter().rev(), b.iter().rev(), 0);
    loop {
        let (x, y) = (a.next(), b.next());
        if x.is_none() && y.is_none() && carry == 0 {
            break;
        }
        let digit = x.unwrap_or(&0) + y.unwrap_or(&0) + carry;
        sum.push(digit % 10);
        carry = digit / 10;
    }
    sum.reverse();
    sum
}

/// The first is not the smaller one.
fn subtract(a: &[u8], b: &[u8]) -> Vec<u8> {
    let mut difference = Vec::with_capacity(a.len());
    let (mut b, mut borrow) = (b.iter().rev(), 0);
    for digit in a.iter().rev() {
        let less = b.next().unwrap_or(&0) + borrow;
        borrow = u8::from(*digit < less);
        difference.push(digit + 10 * borrow - less);
    }
    difference.reverse();
    difference
}
