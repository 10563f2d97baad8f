//! Functions that we do ourselves: where the library takes longer than its arguments are long, makes more than it can be
//! asked for, or answers by chance. `None`: for these arguments the library is asked. Pure.

use std::{collections::BTreeSet, sync::Arc};

use super::{
    library::{self, refused},
    run::{Halt, Run},
    value::Value,
};

/// A function of ours.
pub(super) type Native = fn(&Run<'_>, &[Value]) -> Result<Option<Value>, Halt>;

/// The most digits after the point in a format.
const PRECISION: usize = 100;

/// The function of ours that has this name.
pub(super) fn native(name: &str) -> Option<Native> {
    Some(match name {
        "size" => size,
        "string" => string,
        "int" => int,
        "sum" => sum,
        "contains" => contains,
        "indexOf" => index_of,
        "lastIndexOf" => last_index_of,
        "split" => split,
        "join" => join,
        "replace" => replace,
        "format" => format,
        "matches" => matches,
        "find" => find,
        "findAll" => find_all,
        "sort" => sort,
        "distinct" => distinct,
        "sets.contains" => sets_contains,
        "sets.intersects" => sets_intersect,
        "sets.equivalent" => sets_equivalent,
        "lists.range" => range,
        "merge" => merge,
        _ => return None,
    })
}

fn whole(number: usize) -> Value {
    Value::Int(i64::try_from(number).unwrap_or(i64::MAX))
}

/// A text of so many bytes may be made.
fn may_make(run: &Run<'_>, bytes: usize) -> Result<(), Halt> {
    Ok(run.budget.make(32 + bytes as u64)?)
}

fn size(_: &Run<'_>, arguments: &[Value]) -> Result<Option<Value>, Halt> {
    Ok(match arguments {
        [Value::List(list)] => Some(whole(list.items.len())),
        [Value::Map(map)] => Some(whole(map.fields.len())),
        [Value::Bytes(bytes)] => Some(whole(bytes.len())),
        [Value::String(text)] => Some(whole(text.chars().count())),
        _ => return Err(refused("size", arguments)),
    })
}

fn string(run: &Run<'_>, arguments: &[Value]) -> Result<Option<Value>, Halt> {
    let text = match arguments {
        [Value::String(text)] => return Ok(Some(Value::String(Arc::clone(text)))),
        [Value::Int(number)] => number.to_string(),
        [Value::Uint(number)] => number.to_string(),
        [Value::Bool(value)] => value.to_string(),
        _ => return Ok(None),
    };
    may_make(run, text.len())?;
    Ok(Some(Value::text(text)))
}

fn int(run: &Run<'_>, arguments: &[Value]) -> Result<Option<Value>, Halt> {
    let number = match arguments {
        [Value::Int(number)] => Some(*number),
        [Value::Uint(number)] => i64::try_from(*number).ok(),
        [Value::String(text)] => {
            run.budget.spend(text.len() as u64)?;
            text.parse().ok()
        }
        _ => return Ok(None),
    };
    number.map(|number| Some(Value::Int(number))).ok_or_else(|| refused("int", arguments))
}

/// The library goes round when the sum is too large.
fn sum(run: &Run<'_>, arguments: &[Value]) -> Result<Option<Value>, Halt> {
    let [Value::List(list)] = arguments else { return Err(refused("sum", arguments)) };
    run.budget.spend(16 * list.items.len() as u64)?;
    let wrong = || refused("sum", &list.items);
    let mut items = list.items.iter();
    let Some(first) = items.next() else { return Ok(Some(Value::Int(0))) };
    let add = |sum: Value, item: &Value| match (&sum, item) {
        (Value::Int(a), Value::Int(b)) => a.checked_add(*b).map(Value::Int).ok_or_else(wrong),
        (Value::Uint(a), Value::Uint(b)) => a.checked_add(*b).map(Value::Uint).ok_or_else(wrong),
        (Value::Double(a), Value::Double(b)) => Ok(Value::Double(a + b)),
        _ => Err(wrong()),
    };
    match first {
        Value::Int(_) | Value::Uint(_) | Value::Double(_) => items.try_fold(first.clone(), add).map(Some),
        _ => Err(wrong()),
    }
}

fn contains(run: &Run<'_>, arguments: &[Value]) -> Result<Option<Value>, Halt> {
    match arguments {
        [Value::String(text), Value::String(part)] => {
            run.budget.spend((text.len() + part.len()) as u64)?;
            Ok(Some(Value::Bool(text.contains(&**part))))
        }
        _ => Err(refused("contains", arguments)),
    }
}

fn index_of(run: &Run<'_>, arguments: &[Value]) -> Result<Option<Value>, Halt> {
    let (text, part, from) = match arguments {
        [Value::List(list), item] => {
            run.budget.spend(list.items.iter().map(|it| 16 + it.size().min(item.size())).sum())?;
            return Ok(Some(position(list.items.iter().position(|it| it == item))));
        }
        [Value::String(text), Value::String(part)] => (text, part, 0),
        [Value::String(text), Value::String(part), Value::Int(from)] => (text, part, *from),
        _ => return Err(refused("indexOf", arguments)),
    };
    run.budget.spend((2 * text.len() + part.len()) as u64)?;
    let Some(begin) = usize::try_from(from).ok().and_then(|from| byte_of(text, from)) else {
        return Err(refused("indexOf", arguments));
    };
    let found = text[begin..].find(&**part).map(|at| text[..begin + at].chars().count());
    Ok(Some(position(found)))
}

fn last_index_of(run: &Run<'_>, arguments: &[Value]) -> Result<Option<Value>, Halt> {
    let (text, part, last) = match arguments {
        [Value::List(list), item] => {
            run.budget.spend(list.items.iter().map(|it| 16 + it.size().min(item.size())).sum())?;
            return Ok(Some(position(list.items.iter().rposition(|it| it == item))));
        }
        [Value::String(text), Value::String(part)] => (text, part, None),
        [Value::String(text), Value::String(part), Value::Int(last)] => (text, part, Some(*last)),
        _ => return Err(refused("lastIndexOf", arguments)),
    };
    run.budget.spend((2 * text.len() + part.len()) as u64)?;
    let mut end = text.len();
    if let Some(last) = last {
        let Some(begin) = usize::try_from(last).ok().and_then(|last| byte_of(text, last)) else {
            return Err(refused("lastIndexOf", arguments));
        };
        end = end.min(begin + part.len());
        // What ends within a character is no match.
        while !text.is_char_boundary(end) {
            end -= 1;
        }
    }
    Ok(Some(position(text[..end].rfind(&**part).map(|at| text[..at].chars().count()))))
}

fn position(found: Option<usize>) -> Value {
    found.map_or(Value::Int(-1), whole)
}

/// Where the character of that number begins; the end of the text is one as well.
fn byte_of(text: &str, character: usize) -> Option<usize> {
    text.char_indices().map(|(at, _)| at).chain([text.len()]).nth(character)
}

/// The third argument of a function: how many at the most, and all of them if it is negative or is not there.
fn most(argument: Option<&Value>) -> Option<usize> {
    match argument {
        None => Some(usize::MAX),
        Some(Value::Int(number)) => Some(usize::try_from(*number).unwrap_or(usize::MAX)),
        Some(_) => None,
    }
}

fn split(run: &Run<'_>, arguments: &[Value]) -> Result<Option<Value>, Halt> {
    let ([Value::String(text), Value::String(by)] | [Value::String(text), Value::String(by), _]) = arguments else {
        return Err(refused("split", arguments));
    };
    let most = most(arguments.get(2)).ok_or_else(|| refused("split", arguments))?;
    run.budget.spend(2 * text.len() as u64)?;
    let parts = if by.is_empty() { text.chars().count() } else { text.matches(&**by).count() + 1 };
    may_make(run, text.len() + parts.min(most) * 40)?;
    let parts: Vec<Value> = match (by.is_empty(), most) {
        (_, 0) => Vec::new(),
        (true, most) => {
            let cut = byte_of(text, most - 1).unwrap_or(text.len());
            let (each, rest) = text.split_at(cut);
            let each = each.chars().map(|character| Value::text(character.to_string()));
            each.chain((!rest.is_empty()).then(|| Value::text(rest))).collect()
        }
        (false, most) => text.splitn(most, &**by).map(Value::text).collect(),
    };
    Ok(Some(Value::list(parts)))
}

/// Of texts: what else there is has no text that is the same everywhere.
fn join(run: &Run<'_>, arguments: &[Value]) -> Result<Option<Value>, Halt> {
    let (list, by) = match arguments {
        [Value::List(list)] => (list, ""),
        [Value::List(list), Value::String(by)] => (list, &**by),
        _ => return Err(refused("join", arguments)),
    };
    let mut parts = Vec::with_capacity(list.items.len());
    for item in &list.items {
        let Value::String(part) = item else { return Err(refused("join", &list.items)) };
        parts.push(&**part);
    }
    let length = parts.iter().map(|part| part.len()).sum::<usize>();
    may_make(run, length.saturating_add(by.len().saturating_mul(parts.len())))?;
    Ok(Some(Value::text(parts.join(by))))
}

fn replace(run: &Run<'_>, arguments: &[Value]) -> Result<Option<Value>, Halt> {
    let [Value::String(text), Value::String(old), Value::String(new), rest @ ..] = arguments else {
        return Err(refused("replace", arguments));
    };
    if rest.len() > 1 {
        return Err(refused("replace", arguments));
    }
    let most = most(rest.first()).ok_or_else(|| refused("replace", arguments))?;
    run.budget.spend(2 * text.len() as u64)?;
    let times = text.matches(&**old).take(most).count();
    may_make(run, text.len().saturating_add(times.saturating_mul(new.len())))?;
    Ok(Some(Value::text(text.replacen(&**old, new, times))))
}

/// The library writes a mapping in the order of its hash: lists and mappings are written out here.
fn format(run: &Run<'_>, arguments: &[Value]) -> Result<Option<Value>, Halt> {
    let [Value::String(pattern), Value::List(list)] = arguments else { return Err(refused("format", arguments)) };
    let wrong = || refused("format", arguments);
    let longest = pattern.split('.').skip(1).map(|part| part.bytes().take_while(u8::is_ascii_digit).count()).max();
    let is_precise = pattern.split("%.").skip(1).any(|part| {
        let digits: String = part.chars().take_while(char::is_ascii_digit).collect();
        digits.parse::<usize>().is_ok_and(|precision| precision > PRECISION)
    });
    if is_precise || longest.is_some_and(|digits| digits > 18) {
        return Err(Halt::Failed(format!("format writes at most {PRECISION} digits after the point")));
    }
    let size = arguments[0].size().saturating_add(arguments[1].size());
    run.budget.spend(size.saturating_mul(8))?;
    run.budget.make(size.saturating_mul(2))?;
    let mut items = Vec::with_capacity(list.items.len());
    for item in &list.items {
        items.push(match item {
            Value::List(_) | Value::Map(_) => {
                let mut text = String::new();
                write(item, false, &mut text).ok_or_else(wrong)?;
                Value::text(text)
            }
            Value::Foreign(_) => library::call("string", false, std::slice::from_ref(item)).map_err(|_| wrong())?,
            other => other.clone(),
        });
    }
    library::call("format", true, &[arguments[0].clone(), Value::list(items)]).map(Some)
}

fn write(value: &Value, is_within: bool, text: &mut String) -> Option<()> {
    match value {
        Value::String(part) if is_within => text.extend(["\"", part, "\""]),
        Value::String(part) => text.push_str(part),
        Value::Null => text.push_str("null"),
        Value::Bool(value) => text.push_str(&value.to_string()),
        Value::Int(number) => text.push_str(&number.to_string()),
        Value::Uint(number) => text.push_str(&number.to_string()),
        Value::Double(number) => text.push_str(&number.to_string()),
        Value::List(list) => {
            text.push('[');
            for (number, item) in list.items.iter().enumerate() {
                text.push_str(if number > 0 { ", " } else { "" });
                write(item, true, text)?;
            }
            text.push(']');
        }
        Value::Map(map) => {
            text.push('{');
            for (number, (key, value)) in map.fields.iter().enumerate() {
                text.push_str(if number > 0 { ", " } else { "" });
                write(&key.value(), true, text)?;
                text.push(':');
                write(value, true, text)?;
            }
            text.push('}');
        }
        Value::Bytes(_) | Value::Foreign(_) => return None,
    }
    Some(())
}

fn matches(run: &Run<'_>, arguments: &[Value]) -> Result<Option<Value>, Halt> {
    let [Value::String(text), Value::String(pattern)] = arguments else { return Err(refused("matches", arguments)) };
    let compiled = searching(run, "matches", text, pattern)?;
    Ok(Some(Value::Bool(compiled.is_match(text))))
}

/// To search takes as long as text and pattern are, multiplied in the worst case.
fn searching(run: &Run<'_>, function: &str, text: &str, pattern: &Arc<str>) -> Result<regex::Regex, Halt> {
    let compiled = run.pattern(function, pattern)?;
    run.budget.spend((text.len() as u64).saturating_mul(4 + pattern.len() as u64 / 4))?;
    Ok(compiled)
}

fn find(run: &Run<'_>, arguments: &[Value]) -> Result<Option<Value>, Halt> {
    let [Value::String(text), Value::String(pattern)] = arguments else { return Err(refused("find", arguments)) };
    let compiled = searching(run, "find", text, pattern)?;
    let found = compiled.find(text).map_or("", |found| found.as_str());
    may_make(run, found.len())?;
    Ok(Some(Value::text(found)))
}

fn find_all(run: &Run<'_>, arguments: &[Value]) -> Result<Option<Value>, Halt> {
    let ([Value::String(text), Value::String(pattern)] | [Value::String(text), Value::String(pattern), _]) = arguments
    else {
        return Err(refused("findAll", arguments));
    };
    let most = most(arguments.get(2)).ok_or_else(|| refused("findAll", arguments))?;
    let compiled = searching(run, "findAll", text, pattern)?;
    let mut found = Vec::new();
    for part in compiled.find_iter(text).take(most) {
        // Each search may look at the rest of the text.
        run.budget.spend(text.len() as u64 - part.start() as u64)?;
        may_make(run, part.len())?;
        found.push(Value::text(part.as_str()));
    }
    Ok(Some(Value::list(found)))
}

/// Sorting compares each item several times; the library does it.
fn sort(run: &Run<'_>, arguments: &[Value]) -> Result<Option<Value>, Halt> {
    if let [it @ Value::List(list)] = arguments {
        run.budget.spend(it.size().saturating_mul(u64::from(list.items.len().max(1).ilog2()) + 1))?;
    }
    Ok(None)
}

/// Items that can be told apart in the time of a sort.
fn set<'v>(run: &Run<'_>, items: &'v [Value]) -> Result<BTreeSet<Ordered<'v>>, Halt> {
    let size = items.iter().map(Value::size).fold(0, u64::saturating_add);
    run.budget.spend(size.saturating_mul(u64::from(items.len().max(1).ilog2()) + 1))?;
    Ok(items.iter().map(Ordered).collect())
}

struct Ordered<'v>(&'v Value);

impl Ord for Ordered<'_> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.total_order(other.0)
    }
}

impl PartialOrd for Ordered<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Ordered<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Ordered<'_> {}

/// What only the library can compare is compared each with each, and paid for so.
fn each_with_each(run: &Run<'_>, left: &[Value], right: &[Value]) -> Result<bool, Halt> {
    let size = |items: &[Value]| items.iter().map(Value::size).fold(0, u64::saturating_add);
    run.budget.spend(size(left).saturating_add(size(right)))?;
    if !left.iter().chain(right).any(Value::holds_foreign) {
        return Ok(false);
    }
    run.budget
        .spend(size(left).saturating_mul(right.len() as u64).max(size(right).saturating_mul(left.len() as u64)))?;
    Ok(true)
}

fn distinct(run: &Run<'_>, arguments: &[Value]) -> Result<Option<Value>, Halt> {
    let [Value::List(list)] = arguments else { return Err(refused("distinct", arguments)) };
    run.budget.make(16 * list.items.len() as u64)?;
    let mut kept: Vec<Value> = Vec::new();
    if each_with_each(run, &list.items, &list.items)? {
        for item in &list.items {
            if !kept.contains(item) {
                kept.push(item.clone());
            }
        }
        return Ok(Some(Value::list(kept)));
    }
    let mut rest = set(run, &list.items)?;
    kept.extend(list.items.iter().filter(|item| rest.remove(&Ordered(item))).cloned());
    Ok(Some(Value::list(kept)))
}

fn lists<'v>(function: &str, arguments: &'v [Value]) -> Result<(&'v [Value], &'v [Value]), Halt> {
    match arguments {
        [Value::List(a), Value::List(b)] => Ok((&a.items, &b.items)),
        _ => Err(refused(function, arguments)),
    }
}

fn holds_all(run: &Run<'_>, of: &[Value], items: &[Value]) -> Result<bool, Halt> {
    if each_with_each(run, of, items)? {
        return Ok(items.iter().all(|item| of.contains(item)));
    }
    let (of, items) = (set(run, of)?, set(run, items)?);
    Ok(items.is_subset(&of))
}

fn sets_contains(run: &Run<'_>, arguments: &[Value]) -> Result<Option<Value>, Halt> {
    let (a, b) = lists("sets.contains", arguments)?;
    Ok(Some(Value::Bool(holds_all(run, a, b)?)))
}

fn sets_equivalent(run: &Run<'_>, arguments: &[Value]) -> Result<Option<Value>, Halt> {
    let (a, b) = lists("sets.equivalent", arguments)?;
    Ok(Some(Value::Bool(holds_all(run, a, b)? && holds_all(run, b, a)?)))
}

fn sets_intersect(run: &Run<'_>, arguments: &[Value]) -> Result<Option<Value>, Halt> {
    let (a, b) = lists("sets.intersects", arguments)?;
    if each_with_each(run, a, b)? {
        return Ok(Some(Value::Bool(a.iter().any(|item| b.contains(item)))));
    }
    let (a, b) = (set(run, a)?, set(run, b)?);
    Ok(Some(Value::Bool(!a.is_disjoint(&b))))
}

fn range(run: &Run<'_>, arguments: &[Value]) -> Result<Option<Value>, Halt> {
    let [Value::Int(end @ 0..)] = arguments else {
        return Err(Halt::Failed("lists.range expects an int that is not negative".to_owned()));
    };
    run.budget.make(end.unsigned_abs().saturating_mul(16))?;
    Ok(Some(Value::list((0..*end).map(Value::Int).collect())))
}

/// Of two mappings; what both have is as the second has it.
fn merge(run: &Run<'_>, arguments: &[Value]) -> Result<Option<Value>, Halt> {
    let [Value::Map(a), Value::Map(b)] = arguments else { return Err(refused("merge", arguments)) };
    let count = a.fields.len().saturating_add(b.fields.len());
    run.budget.make((count as u64).saturating_mul(64))?;
    let mut fields = a.fields.clone();
    fields.extend(b.fields.iter().map(|(key, value)| (key.clone(), value.clone())));
    Ok(Some(Value::map(fields)))
}
