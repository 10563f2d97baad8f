//! Base 64, JSON and hashes. Pure.

use ring::digest::{SHA256, digest};

use super::{
    super::{run::Halt, value::Value},
    Asked, Entry,
    Form::Function,
    Outcome, strings,
};

pub(super) const ENTRIES: &[Entry] = &[
    ("base64.encode", Function, 1, 1, |asked| {
        let [Value::Bytes(bytes)] = asked.of else { return asked.no() };
        asked.may_make(2 * bytes.len())?;
        Ok(Value::text(write_base64(bytes)))
    }),
    ("base64.decode", Function, 1, 1, |asked| {
        let [Value::String(text)] = asked.of else { return asked.no() };
        asked.may_make(text.len())?;
        asked.or_refused(read_base64(text)).map(|bytes| Value::Bytes(bytes.into()))
    }),
    ("json.marshal", Function, 1, 1, marshal),
    ("json.unmarshal", Function, 1, 1, unmarshal),
    ("hash.sha256", Function, 1, 1, |asked| {
        let bytes = hashed(asked)?;
        asked.text(strings::hex(digest(&SHA256, bytes).as_ref()))
    }),
    ("hash.fnv64a", Function, 1, 1, |asked| {
        let fold = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        let hash = hashed(asked)?.iter().fold(0xcbf2_9ce4_8422_2325, fold);
        asked.text(format!("{hash:016x}"))
    }),
];

const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

pub(in super::super) fn write_base64(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for three in bytes.chunks(3) {
        let byte = |at: usize| u32::from(three.get(at).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for digit in 0..4 {
            let number = (bits >> (18 - 6 * digit)) & 63;
            text.push(if digit <= three.len() { char::from(DIGITS[number as usize]) } else { '=' });
        }
    }
    text
}

/// With its padding, or without any.
fn read_base64(text: &str) -> Option<Vec<u8>> {
    let mut digits: Vec<u8> = text.bytes().filter(|byte| !b"\r\n".contains(byte)).collect();
    let length = digits.len() - digits.iter().rev().take_while(|digit| **digit == b'=').count();
    let padding = digits.len() - length;
    digits.truncate(length);
    if padding > 0 && (padding > 2 || !(length + padding).is_multiple_of(4)) || length % 4 == 1 {
        return None;
    }
    let mut bytes = Vec::with_capacity(length);
    for four in digits.chunks(4) {
        let mut bits = 0_u32;
        for at in 0..4 {
            let number = match four.get(at) {
                Some(digit) => DIGITS.iter().position(|known| known == digit)?,
                None => 0,
            };
            bits = bits << 6 | u32::try_from(number).ok()?;
        }
        bytes.extend_from_slice(&bits.to_be_bytes()[1..four.len()]);
    }
    Some(bytes)
}

fn hashed<'a>(asked: &'a Asked<'_>) -> Result<&'a [u8], Halt> {
    let bytes = match asked.of {
        [Value::String(text)] => text.as_bytes(),
        [Value::Bytes(bytes)] => bytes,
        _ => return asked.no(),
    };
    asked.spend(8 * bytes.len())?;
    Ok(bytes)
}

fn marshal(asked: &Asked<'_>) -> Outcome {
    asked.may_make(usize::try_from(asked.of[0].size()).unwrap_or(usize::MAX).saturating_mul(2))?;
    let json = asked.of[0].to_json().map_err(|why| Halt::Failed(format!("json.marshal: {why}")))?;
    Ok(Value::text(json.to_string()))
}

fn unmarshal(asked: &Asked<'_>) -> Outcome {
    let [Value::String(text)] = asked.of else { return asked.no() };
    // A value of one byte takes sixteen, and an entry more.
    asked.may_make(text.len().saturating_mul(32))?;
    let json: serde_json::Value = asked.or_refused(serde_json::from_str(text).ok())?;
    Ok(Value::from_json(&json))
}
