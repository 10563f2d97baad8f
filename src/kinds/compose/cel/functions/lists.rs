//! Lists, sets and mappings. Pure.

use std::{cmp::Ordering, collections::BTreeSet};

use super::{
    super::{
        run::Halt,
        value::{Key, Value},
    },
    Asked, Entry,
    Form::{Function, Method},
    Outcome, whole,
};

pub(super) const ENTRIES: &[Entry] = &[
    ("sum", Method, 1, 1, sum),
    ("min", Method, 1, 1, |asked| best(asked, Ordering::Greater)),
    ("max", Method, 1, 1, |asked| best(asked, Ordering::Less)),
    ("isSorted", Method, 1, 1, is_sorted),
    ("includes", Method, 2, 2, includes),
    ("slice", Method, 3, 3, slice),
    ("flatten", Method, 1, 2, flatten),
    ("sort", Method, 1, 1, sort),
    ("distinct", Method, 1, 1, distinct),
    ("first", Method, 1, 1, |asked| end(asked, |items| items.first())),
    ("last", Method, 1, 1, |asked| end(asked, |items| items.last())),
    ("lists.range", Function, 1, 1, range),
    ("lists.setAtIndex", Function, 3, 3, |asked| replaced(asked, 1, asked.of.get(2))),
    ("lists.insertAtIndex", Function, 3, 3, |asked| replaced(asked, 0, asked.of.get(2))),
    ("lists.removeAtIndex", Function, 2, 2, |asked| replaced(asked, 1, None)),
    ("sets.contains", Function, 2, 2, |asked| {
        let (a, b) = two(asked)?;
        holds_all(asked, a, b).map(Value::Bool)
    }),
    ("sets.equivalent", Function, 2, 2, |asked| {
        let (a, b) = two(asked)?;
        Ok(Value::Bool(holds_all(asked, a, b)? && holds_all(asked, b, a)?))
    }),
    ("sets.intersects", Function, 2, 2, intersects),
    ("merge", Method, 2, 2, merge),
];

fn list<'a>(asked: &'a Asked<'_>) -> Result<&'a [Value], Halt> {
    match asked.of {
        [Value::List(list), ..] => Ok(&list.items),
        _ => asked.no(),
    }
}

fn is_comparable(value: &Value) -> bool {
    value.compare(value).is_some() || matches!(value, Value::Double(_))
}

fn sum(asked: &Asked<'_>) -> Outcome {
    let items = list(asked)?;
    asked.spend(16 * items.len())?;
    let mut sum = match items.first() {
        None | Some(Value::Int(_)) => Value::Int(0),
        Some(Value::Uint(_)) => Value::Uint(0),
        Some(Value::Double(_)) => Value::Double(0.0),
        Some(Value::Duration(_)) => Value::Duration(0),
        Some(_) => return asked.no(),
    };
    for item in items {
        let next = match (&sum, item) {
            (Value::Int(a), Value::Int(b)) => a.checked_add(*b).map(Value::Int),
            (Value::Uint(a), Value::Uint(b)) => a.checked_add(*b).map(Value::Uint),
            (Value::Double(a), Value::Double(b)) => Some(Value::Double(a + b)),
            (Value::Duration(a), Value::Duration(b)) => a.checked_add(*b).map(Value::Duration),
            (Value::Duration(nanos), Value::Timestamp(time)) | (Value::Timestamp(time), Value::Duration(nanos)) => {
                time.plus(i128::from(*nanos)).map(Value::Timestamp)
            }
            _ => None,
        };
        sum = asked.or_refused(next)?;
    }
    Ok(sum)
}

/// The first that no other one beats. What does not compare with it beats nothing, as Kubernetes has it.
fn best(asked: &Asked<'_>, beaten: Ordering) -> Outcome {
    let items = list(asked)?;
    pay_for_all(asked, items)?;
    let Some((first, rest)) = items.split_first().filter(|(first, _)| is_comparable(first)) else { return asked.no() };
    let mut best = first;
    for item in rest {
        if !is_comparable(item) {
            return asked.no();
        }
        if best.compare(item) == Some(beaten) {
            best = item;
        }
    }
    Ok(best.clone())
}

fn is_sorted(asked: &Asked<'_>) -> Outcome {
    let items = list(asked)?;
    pay_for_all(asked, items)?;
    if !items.iter().all(is_comparable) {
        return asked.no();
    }
    Ok(Value::Bool(!items.windows(2).any(|pair| pair[0].compare(&pair[1]) == Some(Ordering::Greater))))
}

/// Pays for going through all of them.
fn pay_for_all(asked: &Asked<'_>, items: &[Value]) -> Result<(), Halt> {
    let work = |item: &Value| item.size().saturating_add(16);
    Ok(asked.run.budget.spend(items.iter().map(work).fold(0, u64::saturating_add))?)
}

pub(super) fn index_of(asked: &Asked<'_>) -> Outcome {
    let (items, [_, item]) = (list(asked)?, asked.of) else { return asked.no() };
    asked.run.compare_each(items, item)?;
    let found = items.iter().position(|it| it.equal(item) == Some(true));
    Ok(found.map_or(Value::Int(-1), whole))
}

pub(super) fn last_index_of(asked: &Asked<'_>) -> Outcome {
    let (items, [_, item]) = (list(asked)?, asked.of) else { return asked.no() };
    asked.run.compare_each(items, item)?;
    let found = items.iter().rposition(|it| it.equal(item) == Some(true));
    Ok(found.map_or(Value::Int(-1), whole))
}

/// Whether a list has it, or whether it is it.
fn includes(asked: &Asked<'_>) -> Outcome {
    let [of, item] = asked.of else { return asked.no() };
    let items = match of {
        Value::List(list) => &list.items[..],
        one => std::slice::from_ref(one),
    };
    asked.run.compare_each(items, item)?;
    Ok(Value::Bool(items.iter().any(|it| it.equal(item) == Some(true))))
}

pub(super) fn reverse(asked: &Asked<'_>) -> Outcome {
    let items = list(asked)?;
    asked.may_make(16 * items.len())?;
    Ok(Value::list(items.iter().rev().cloned().collect()))
}

fn slice(asked: &Asked<'_>) -> Outcome {
    let (items, [_, Value::Int(start), Value::Int(end)]) = (list(asked)?, asked.of) else { return asked.no() };
    let (start, end) = (usize::try_from(*start).ok(), usize::try_from(*end).ok());
    let part = start.zip(end).and_then(|(start, end)| items.get(start..end));
    let part = part.ok_or_else(|| Halt::Failed("slice goes beyond the list".to_owned()))?;
    asked.may_make(16 * part.len())?;
    Ok(Value::list(part.to_vec()))
}

fn flatten(asked: &Asked<'_>) -> Outcome {
    let depth = match asked.of {
        [_] => 1,
        [_, Value::Int(depth @ 0..)] => *depth,
        _ => return asked.no(),
    };
    let mut flat = Vec::new();
    flatten_into(asked, list(asked)?, depth, &mut flat)?;
    Ok(Value::list(flat))
}

/// Lists are no deeper than what they were read from, or than the text of the expression is.
fn flatten_into(asked: &Asked<'_>, items: &[Value], depth: i64, flat: &mut Vec<Value>) -> Result<(), Halt> {
    asked.may_make(16 * items.len())?;
    for item in items {
        match item {
            Value::List(list) if depth > 0 => flatten_into(asked, &list.items, depth - 1, flat)?,
            other => flat.push(other.clone()),
        }
    }
    Ok(())
}

fn sort(asked: &Asked<'_>) -> Outcome {
    let items = list(asked)?;
    asked.may_make(48 * items.len())?;
    asked.run.sorted(items.iter().map(|item| (item.clone(), item.clone())).collect())
}

fn end(asked: &Asked<'_>, of: fn(&[Value]) -> Option<&Value>) -> Outcome {
    Ok(of(list(asked)?).cloned().map_or(Value::Optional(None), Value::some))
}

fn range(asked: &Asked<'_>) -> Outcome {
    let [Value::Int(end @ 0..)] = asked.of else {
        return Err(Halt::Failed("lists.range expects an int that is not negative".to_owned()));
    };
    asked.run.budget.make(end.unsigned_abs().saturating_mul(16))?;
    Ok(Value::list((0..*end).map(Value::Int).collect()))
}

/// A list in which so many items at an index are replaced.
fn replaced(asked: &Asked<'_>, removed: usize, by: Option<&Value>) -> Outcome {
    let (items, [_, Value::Int(index), ..]) = (list(asked)?, asked.of) else { return asked.no() };
    let at = usize::try_from(*index).ok().filter(|at| at + removed <= items.len());
    let at = at.ok_or_else(|| Halt::Failed(format!("{} goes beyond the list", asked.function)))?;
    asked.may_make(16 * (items.len() + 1))?;
    let rest = items[at + removed..].iter();
    Ok(Value::list(items[..at].iter().chain(by).chain(rest).cloned().collect()))
}

/// Items that can be told apart in the time of a sort.
fn set<'v>(asked: &Asked<'_>, items: &'v [Value]) -> Result<BTreeSet<Ordered<'v>>, Halt> {
    let size = items.iter().map(Value::size).fold(0, u64::saturating_add);
    asked.run.budget.spend(size.saturating_mul(u64::from(items.len().max(1).ilog2()) + 1))?;
    Ok(items.iter().map(Ordered).collect())
}

struct Ordered<'v>(&'v Value);

impl Ord for Ordered<'_> {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.total_order(other.0)
    }
}

impl PartialOrd for Ordered<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Ordered<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Ordered<'_> {}

/// What has no order that agrees with its equality is compared each with each, and paid for so.
fn each_with_each(asked: &Asked<'_>, left: &[Value], right: &[Value]) -> Result<bool, Halt> {
    let size = |items: &[Value]| items.iter().map(Value::size).fold(0, u64::saturating_add);
    asked.run.budget.spend(16 * (left.len() + right.len()) as u64)?;
    if left.iter().chain(right).all(Value::is_plain) {
        return Ok(false);
    }
    let work = size(left).saturating_mul(right.len() as u64).max(size(right).saturating_mul(left.len() as u64));
    asked.run.budget.spend(work)?;
    Ok(true)
}

fn is_among(items: &[Value], item: &Value) -> bool {
    items.iter().any(|it| item.equal(it) == Some(true))
}

fn distinct(asked: &Asked<'_>) -> Outcome {
    let items = list(asked)?;
    asked.may_make(16 * items.len())?;
    let mut kept: Vec<Value> = Vec::new();
    if each_with_each(asked, items, items)? {
        for item in items {
            if !is_among(&kept, item) {
                kept.push(item.clone());
            }
        }
        return Ok(Value::list(kept));
    }
    let mut rest = set(asked, items)?;
    kept.extend(items.iter().filter(|item| rest.remove(&Ordered(item))).cloned());
    Ok(Value::list(kept))
}

fn two<'a>(asked: &'a Asked<'_>) -> Result<(&'a [Value], &'a [Value]), Halt> {
    match asked.of {
        [Value::List(a), Value::List(b)] => Ok((&a.items, &b.items)),
        _ => asked.no(),
    }
}

fn holds_all(asked: &Asked<'_>, of: &[Value], items: &[Value]) -> Result<bool, Halt> {
    if each_with_each(asked, of, items)? {
        return Ok(items.iter().all(|item| is_among(of, item)));
    }
    let (of, items) = (set(asked, of)?, set(asked, items)?);
    Ok(items.is_subset(&of))
}

fn intersects(asked: &Asked<'_>) -> Outcome {
    let (a, b) = two(asked)?;
    if each_with_each(asked, a, b)? {
        return Ok(Value::Bool(a.iter().any(|item| is_among(b, item))));
    }
    let (a, b) = (set(asked, a)?, set(asked, b)?);
    Ok(Value::Bool(!a.is_disjoint(&b)))
}

/// Of two mappings; what both have is as the second has it.
fn merge(asked: &Asked<'_>) -> Outcome {
    let [Value::Map(a), Value::Map(b)] = asked.of else { return asked.no() };
    let count = a.fields.len().saturating_add(b.fields.len());
    asked.may_make(count.saturating_mul(64))?;
    // Keys are compared.
    let keys = a.fields.keys().chain(b.fields.keys()).map(Key::size).fold(0, u64::saturating_add);
    asked.run.budget.spend(keys)?;
    let mut fields = a.fields.clone();
    fields.extend(b.fields.iter().map(|(key, value)| (key.clone(), value.clone())));
    Ok(Value::map(fields))
}
