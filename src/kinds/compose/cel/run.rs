//! Evaluates a tree. Pure.
//!
//! Every node is paid for, and whatever goes through a value is paid for by its size before it does. What is made by a
//! macro is appended to, so that a macro takes as long as its range. An error is no value of an argument: a function never
//! sees one, and says nothing instead of it.

use std::{
    cell::RefCell,
    cmp::Ordering,
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use super::{
    Name,
    budget::{Budget, Spent},
    functions::{Asked, patterns::Pattern, time},
    parse::Operator,
    tree::{Call, Does, Macro, Node, Step},
    value::{Key, Value},
};

/// What every node costs.
const NODE: u64 = 32;
/// The deepest value: it is gone through by recursion.
const DEEPEST: usize = 100;
/// Characters of a name in a message.
const NAMED: usize = 100;

/// Why there is no value.
#[derive(Clone, Debug)]
pub(super) enum Halt {
    /// A field, or an item, that is not there, and what it was looked for in.
    Missing { what: String, root: Option<Name> },
    /// Anything else.
    Failed(String),
    /// The budget is spent: nothing takes that for an answer.
    Spent(Spent),
}

impl From<Spent> for Halt {
    fn from(spent: Spent) -> Self {
        Self::Spent(spent)
    }
}

pub(super) type Outcome = Result<Value, Halt>;

/// The types of some values, as messages name them.
pub(super) fn types(values: &[Value]) -> String {
    let mut names: Vec<_> = values.iter().take(8).map(Value::type_name).collect();
    if values.len() > names.len() {
        names.push("…");
    }
    names.join(", ")
}

/// Regular expressions by their text, so that each is compiled once for an object.
pub(super) type Patterns = RefCell<HashMap<Arc<str>, Pattern>>;

/// One evaluation.
pub(super) struct Run<'a> {
    pub(super) known: &'a BTreeMap<Name, Value>,
    pub(super) budget: &'a Budget,
    pub(super) patterns: &'a Patterns,
    /// The values of the macros around; one that is bound may have none.
    pub(super) locals: Vec<Outcome>,
}

impl Run<'_> {
    pub(super) fn value(&mut self, node: &Node) -> Outcome {
        self.budget.spend(NODE)?;
        match node {
            Node::Literal(value) => Ok(value.clone()),
            Node::Known(name) => self.known.get(name).cloned().ok_or_else(|| {
                let what = format!("there is no `{}`", name.variable());
                Halt::Missing { what, root: Some(name.clone()) }
            }),
            Node::Local(number) => self.locals.get(*number).cloned().unwrap_or(Ok(Value::Null)),
            Node::Index(step) => self.index(step),
            Node::Has(of, key) => self.has(of, key),
            Node::List(items) => self.list(items),
            Node::Map(entries) => self.map(entries),
            Node::Conditional(parts) => {
                let [condition, yes, no] = &**parts;
                match self.value(condition)? {
                    Value::Bool(true) => self.value(yes),
                    Value::Bool(false) => self.value(no),
                    other => Err(Halt::Failed(format!("the condition of `?` is {}", other.type_name()))),
                }
            }
            Node::And(parts) => self.decided(parts, false),
            Node::Or(parts) => self.decided(parts, true),
            Node::Not(of) => match self.value(of)? {
                Value::Bool(value) => Ok(Value::Bool(!value)),
                other => Err(Halt::Failed(format!("`!` has no value for {}", other.type_name()))),
            },
            Node::Negate(of) => match self.value(of)? {
                Value::Int(number) => number.checked_neg().map(Value::Int).ok_or_else(too_large),
                Value::Duration(nanos) => nanos.checked_neg().map(Value::Duration).ok_or_else(too_large),
                Value::Double(number) => Ok(Value::Double(-number)),
                other => Err(Halt::Failed(format!("`-` has no value for {}", other.type_name()))),
            },
            Node::Binary(operator, sides) => {
                let (left, right) = (self.value(&sides[0])?, self.value(&sides[1])?);
                self.binary(*operator, &left, &right)
            }
            Node::Call(call) => self.call(call),
            Node::Macro(it) => self.each(it),
            Node::Bind(parts) => {
                let value = self.value(&parts[0]);
                self.with(value, &parts[1])
            }
            Node::Optional { parts, is_flat } => match self.value(&parts[0])? {
                Value::Optional(None) => Ok(Value::Optional(None)),
                Value::Optional(Some(value)) => {
                    let made = self.with(Ok(Value::clone(&value)), &parts[1])?;
                    if *is_flat { Ok(made) } else { shallow(Value::some(made)) }
                }
                other => Err(Halt::Failed(format!("optMap has no value for {}", other.type_name()))),
            },
            Node::Else { parts, is_value } => match self.value(&parts[0])? {
                Value::Optional(None) => self.value(&parts[1]),
                Value::Optional(Some(value)) if *is_value => Ok(Value::clone(&value)),
                some @ Value::Optional(_) => Ok(some),
                other => {
                    let name = if *is_value { "orValue" } else { "or" };
                    Err(Halt::Failed(format!("{name} has no value for {}", other.type_name())))
                }
            },
        }
    }

    /// The value of a node that sees one more.
    fn with(&mut self, value: Outcome, node: &Node) -> Outcome {
        if let Err(Halt::Spent(spent)) = value {
            return Err(spent.into());
        }
        self.locals.push(value);
        let outcome = self.value(node);
        self.locals.pop();
        outcome
    }

    /// A value of so much memory of its own; what it shares was paid for when it was made.
    fn made(&self, value: Value, own: u64) -> Outcome {
        let own = match &value {
            Value::List(list) => own + 16 * list.items.len() as u64,
            Value::Map(map) => own + 64 * map.fields.len() as u64,
            _ => own,
        };
        self.budget.make(own)?;
        shallow(value)
    }

    fn list(&mut self, items: &[(bool, Node)]) -> Outcome {
        let mut made = Vec::with_capacity(items.len());
        for (is_optional, item) in items {
            let value = self.value(item)?;
            match value {
                value if !is_optional => made.push(value),
                Value::Optional(value) => made.extend(value.map(|value| Value::clone(&value))),
                other => {
                    return Err(Halt::Failed(format!(
                        "`?` in a list takes an optional value, not {}",
                        other.type_name()
                    )));
                }
            }
        }
        self.made(Value::list(made), 16 * 2)
    }

    fn map(&mut self, entries: &[(bool, Node, Node)]) -> Outcome {
        let mut fields = BTreeMap::new();
        for (is_optional, key, value) in entries {
            let (key, value) = (self.value(key)?, self.value(value)?);
            // Keys are compared.
            self.budget.spend(key.size())?;
            let Some(key) = Key::of(&key) else {
                return Err(Halt::Failed(format!("a mapping cannot have a key that is {}", key.type_name())));
            };
            let value = match value {
                value if !is_optional => value,
                Value::Optional(Some(value)) => Value::clone(&value),
                Value::Optional(None) => continue,
                other => {
                    let message = format!("`?` in a mapping takes an optional value, not {}", other.type_name());
                    return Err(Halt::Failed(message));
                }
            };
            if fields.insert(key, value).is_some() {
                return Err(twice());
            }
        }
        self.made(Value::map(fields), 32)
    }

    fn has(&mut self, of: &Node, key: &Key) -> Outcome {
        let value = self.value(of)?;
        let within = match &value {
            Value::Optional(Some(value)) => value,
            other => other,
        };
        Ok(Value::Bool(match within {
            Value::Map(map) => map.fields.contains_key(key),
            Value::List(_) => return Err(Halt::Failed("has() asks for a field of list".to_owned())),
            // As Kubernetes has it.
            _ => false,
        }))
    }

    fn index(&mut self, step: &Step) -> Outcome {
        let of = self.value(&step.of)?;
        let key = self.value(&step.key)?;
        // Keys are compared.
        self.budget.spend(key.size())?;
        match &of {
            // A step into an optional value is optional as well.
            Value::Optional(None) => Ok(Value::Optional(None)),
            Value::Optional(Some(of)) => found(of, &key, step, true).map(|value| Value::Optional(value.map(Arc::new))),
            of if step.is_optional => found(of, &key, step, true).map(|value| Value::Optional(value.map(Arc::new))),
            of => found(of, &key, step, false).map(|value| value.unwrap_or(Value::Null)),
        }
    }

    /// `&&` and `||`: what decides it is the answer, even if another side has none.
    fn decided(&mut self, sides: &[Node], decisive: bool) -> Outcome {
        let mut undecided = None;
        for side in sides {
            match self.truth(side) {
                Ok(value) if value == decisive => return Ok(Value::Bool(decisive)),
                Ok(_) => {}
                Err(Halt::Spent(spent)) => return Err(spent.into()),
                Err(halt) => _ = undecided.get_or_insert(halt),
            }
        }
        undecided.map_or(Ok(Value::Bool(!decisive)), Err)
    }

    fn truth(&mut self, node: &Node) -> Result<bool, Halt> {
        match self.value(node)? {
            Value::Bool(value) => Ok(value),
            other => Err(Halt::Failed(format!("expected true or false, got {}", other.type_name()))),
        }
    }

    /// Whether two are equal, paid for.
    pub(super) fn equal(&self, left: &Value, right: &Value) -> Result<Option<bool>, Halt> {
        self.budget.spend(left.size().min(right.size()))?;
        Ok(left.equal(right))
    }

    fn binary(&mut self, operator: Operator, left: &Value, right: &Value) -> Outcome {
        let order = match operator {
            Operator::Equal => {
                return self.equal(left, right)?.map(Value::Bool).ok_or_else(|| incomparable(left, right));
            }
            Operator::NotEqual => return Ok(Value::Bool(self.equal(left, right)? != Some(true))),
            Operator::In => return self.is_in(left, right),
            Operator::Less | Operator::LessOrEqual | Operator::Greater | Operator::GreaterOrEqual => {
                self.budget.spend(left.size().min(right.size()))?;
                left.compare(right)
            }
            _ => return self.arithmetic(operator, left, right),
        };
        // No number at all is neither less nor more.
        let Some(order) = order else {
            return Err(incomparable(left, right));
        };
        Ok(Value::Bool(match operator {
            Operator::Less => order.is_lt(),
            Operator::LessOrEqual => order.is_le(),
            Operator::Greater => order.is_gt(),
            _ => order.is_ge(),
        }))
    }

    fn is_in(&self, item: &Value, of: &Value) -> Outcome {
        match of {
            Value::List(list) => {
                self.compare_each(&list.items, item)?;
                Ok(Value::Bool(list.items.iter().any(|it| item.equal(it) == Some(true))))
            }
            Value::Map(map) => {
                self.budget.spend(item.size())?;
                Ok(Value::Bool(Key::sought(item).is_some_and(|key| map.fields.contains_key(&key))))
            }
            other => Err(Halt::Failed(format!("`in` asks for an item of {}", other.type_name()))),
        }
    }

    /// Pays for a comparison of a value with each.
    pub(super) fn compare_each(&self, items: &[Value], with: &Value) -> Result<(), Halt> {
        let work = |item: &Value| item.size().min(with.size()).saturating_add(16);
        Ok(self.budget.spend(items.iter().map(work).fold(0, u64::saturating_add))?)
    }

    fn arithmetic(&self, operator: Operator, left: &Value, right: &Value) -> Outcome {
        let name = match operator {
            Operator::Add => "add",
            Operator::Subtract => "subtract",
            Operator::Multiply => "multiply",
            Operator::Divide => "divide",
            _ => "take the remainder of",
        };
        let made = match (left, right) {
            (Value::Int(_), Value::Int(0)) | (Value::Uint(_), Value::Uint(0))
                if matches!(operator, Operator::Divide | Operator::Remainder) =>
            {
                return Err(Halt::Failed("division by zero".to_owned()));
            }
            (Value::Int(a), Value::Int(b)) => {
                let done = match operator {
                    Operator::Add => a.checked_add(*b),
                    Operator::Subtract => a.checked_sub(*b),
                    Operator::Multiply => a.checked_mul(*b),
                    Operator::Divide => a.checked_div(*b),
                    _ => a.checked_rem(*b),
                };
                done.map(Value::Int)
            }
            (Value::Uint(a), Value::Uint(b)) => {
                let done = match operator {
                    Operator::Add => a.checked_add(*b),
                    Operator::Subtract => a.checked_sub(*b),
                    Operator::Multiply => a.checked_mul(*b),
                    Operator::Divide => a.checked_div(*b),
                    _ => a.checked_rem(*b),
                };
                done.map(Value::Uint)
            }
            (Value::Double(a), Value::Double(b)) if operator != Operator::Remainder => {
                Some(Value::Double(match operator {
                    Operator::Add => a + b,
                    Operator::Subtract => a - b,
                    Operator::Multiply => a * b,
                    _ => a / b,
                }))
            }
            (Value::String(a), Value::String(b)) if operator == Operator::Add => {
                self.budget.make(32 + a.len() as u64 + b.len() as u64)?;
                let mut text = String::with_capacity(a.len() + b.len());
                text.push_str(a);
                text.push_str(b);
                Some(Value::text(text))
            }
            (Value::Bytes(a), Value::Bytes(b)) if operator == Operator::Add => {
                self.budget.make(32 + a.len() as u64 + b.len() as u64)?;
                Some(Value::Bytes([&**a, &**b].concat().into()))
            }
            (Value::List(a), Value::List(b)) if operator == Operator::Add => {
                self.budget.spend(16 * (a.items.len() + b.items.len()) as u64)?;
                return self.made(Value::list(a.items.iter().chain(&b.items).cloned().collect()), 32);
            }
            (Value::Duration(a), Value::Duration(b)) if operator == Operator::Add => {
                a.checked_add(*b).map(Value::Duration)
            }
            (Value::Duration(a), Value::Duration(b)) if operator == Operator::Subtract => {
                a.checked_sub(*b).map(Value::Duration)
            }
            (Value::Timestamp(time), Value::Duration(nanos)) | (Value::Duration(nanos), Value::Timestamp(time))
                if operator == Operator::Add =>
            {
                time.plus(i128::from(*nanos)).map(Value::Timestamp)
            }
            (Value::Timestamp(time), Value::Duration(nanos)) if operator == Operator::Subtract => {
                nanos.checked_neg().and_then(|nanos| time.plus(i128::from(nanos))).map(Value::Timestamp)
            }
            (Value::Timestamp(a), Value::Timestamp(b)) if operator == Operator::Subtract => {
                time::between(a, b).map(Value::Duration)
            }
            _ => return Err(Halt::Failed(format!("cannot {name} {} and {}", left.type_name(), right.type_name()))),
        };
        made.ok_or_else(too_large)
    }

    fn call(&mut self, call: &Call) -> Outcome {
        // An argument without a value is no argument: its own error is the answer.
        let mut arguments = Vec::with_capacity(call.arguments.len());
        for argument in &call.arguments {
            arguments.push(self.value(argument)?);
        }
        shallow((call.native)(&Asked { run: self, function: &call.function, of: &arguments })?)
    }

    fn each(&mut self, it: &Macro) -> Outcome {
        let over = self.value(&it.over)?;
        let range: Vec<(Option<Value>, Value)> = match &over {
            Value::List(list) if it.is_pair => {
                (0..).map(|number| Some(Value::Int(number))).zip(list.items.iter().cloned()).collect()
            }
            Value::List(list) => list.items.iter().map(|item| (None, item.clone())).collect(),
            Value::Map(map) if it.does == Does::SortBy => {
                return Err(Halt::Failed(format!("sortBy sorts a list, not a map of {}", map.fields.len())));
            }
            Value::Map(map) if it.is_pair => {
                map.fields.iter().map(|(key, value)| (Some(key.value()), value.clone())).collect()
            }
            Value::Map(map) => map.fields.keys().map(|key| (None, key.value())).collect(),
            other => {
                return Err(Halt::Failed(format!(
                    "a macro goes through a list or a mapping, not {}",
                    other.type_name()
                )));
            }
        };
        self.budget.spend(32 * range.len() as u64)?;
        let depth = self.locals.len();
        let outcome = self.rounds(it, range);
        self.locals.truncate(depth);
        outcome
    }

    fn rounds(&mut self, it: &Macro, range: Vec<(Option<Value>, Value)>) -> Outcome {
        let depth = self.locals.len();
        let mut list = Vec::new();
        let mut sorted = Vec::new();
        let mut fields = BTreeMap::new();
        let mut count = 0_u64;
        // An error is the answer of `all` and `exists` only if no other item decides.
        let mut undecided = None;
        for (key, item) in range {
            self.budget.spend(NODE)?;
            self.locals.truncate(depth);
            self.locals.extend(key.clone().map(Ok));
            self.locals.push(Ok(item.clone()));
            if let Some(filter) = &it.filter
                && !self.truth(filter)?
            {
                continue;
            }
            match it.does {
                Does::List => {
                    self.budget.make(32)?;
                    list.push(self.value(&it.body)?);
                }
                Does::SortBy => {
                    self.budget.make(64)?;
                    sorted.push((self.value(&it.body)?, item));
                }
                Does::Map => {
                    let made = self.value(&it.body)?;
                    fields.extend(key.as_ref().and_then(Key::of).map(|key| (key, made)));
                }
                Does::Entries => {
                    let Value::Map(made) = self.value(&it.body)? else {
                        return Err(Halt::Failed("transformMapEntry makes mappings only".to_owned()));
                    };
                    for (key, value) in &made.fields {
                        self.budget.spend(NODE)?;
                        if fields.insert(key.clone(), value.clone()).is_some() {
                            return Err(twice());
                        }
                    }
                }
                Does::ExistsOne => count += u64::from(self.truth(&it.body)?),
                Does::All | Does::Exists => match self.truth(&it.body) {
                    Ok(truth) if truth == (it.does == Does::Exists) => return Ok(Value::Bool(truth)),
                    Ok(_) => {}
                    Err(Halt::Spent(spent)) => return Err(spent.into()),
                    Err(halt) => _ = undecided.get_or_insert(halt),
                },
            }
        }
        match (it.does, undecided) {
            (_, Some(halt)) => Err(halt),
            (Does::List, _) => shallow(Value::list(list)),
            (Does::SortBy, _) => self.sorted(sorted),
            (Does::Map | Does::Entries, _) => self.made(Value::map(fields), 32),
            (Does::ExistsOne, _) => Ok(Value::Bool(count == 1)),
            (Does::All, _) => Ok(Value::Bool(true)),
            (Does::Exists, _) => Ok(Value::Bool(false)),
        }
    }

    /// Values in the order of their keys, which have to be of one type that has an order. Equal keys stay as they are.
    pub(super) fn sorted(&self, mut items: Vec<(Value, Value)>) -> Outcome {
        let size = items.iter().map(|(key, _)| key.size()).fold(0, u64::saturating_add);
        self.budget.spend(size.saturating_mul(u64::from(items.len().max(1).ilog2()) + 1))?;
        if let Some((first, _)) = items.first() {
            let of = first.type_of();
            if first.compare(first).is_none() && !matches!(first, Value::Double(_)) {
                return Err(Halt::Failed(format!("values that are {} have no order", first.type_name())));
            }
            if items.iter().any(|(key, _)| key.type_of() != of) {
                return Err(Halt::Failed("values of several types have no order".to_owned()));
            }
            if items.iter().any(|(key, _)| matches!(key, Value::Double(number) if number.is_nan())) {
                return Err(Halt::Failed("what is no number has no order".to_owned()));
            }
        }
        items.sort_by(|(a, _), (b, _)| a.compare(b).unwrap_or(Ordering::Equal));
        self.made(Value::list(items.into_iter().map(|(_, item)| item).collect()), 32)
    }
}

/// The value, unless it is too deep to be gone through by recursion.
fn shallow(value: Value) -> Outcome {
    if value.depth() > DEEPEST {
        return Err(Halt::Failed(format!("a value of more than {DEEPEST} lists and mappings in one another")));
    }
    Ok(value)
}

/// A field or an item. `None` if it is not there and may be so.
fn found(of: &Value, key: &Value, step: &Step, may_miss: bool) -> Result<Option<Value>, Halt> {
    let missing = |what: String| {
        if may_miss { Ok(None) } else { Err(Halt::Missing { what, root: step.root.clone() }) }
    };
    let no_step = || Halt::Failed(format!("{} has no field or item of {}", of.type_name(), key.type_name()));
    match of {
        // No key is a double that is not whole.
        Value::Map(_) if may_miss && matches!(key, Value::Double(_)) && Key::sought(key).is_none() => Ok(None),
        Value::Map(map) => match map.fields.get(&Key::sought(key).ok_or_else(no_step)?) {
            Some(value) => Ok(Some(value.clone())),
            None => match &step.key {
                // What the text names is no secret.
                Node::Literal(Value::String(name)) => {
                    missing(format!("there is no `{}`", name.chars().take(NAMED).collect::<String>()))
                }
                _ => missing("there is no such key".to_owned()),
            },
        },
        Value::List(list) => {
            let number = match Key::sought(key) {
                Some(Key::Int(number)) => usize::try_from(number).ok(),
                Some(Key::Uint(number)) => usize::try_from(number).ok(),
                _ => return Err(no_step()),
            };
            match number.and_then(|number| list.items.get(number)) {
                Some(item) => Ok(Some(item.clone())),
                None => missing("the list is shorter".to_owned()),
            }
        }
        _ if may_miss && (Key::of(key).is_some() || matches!(key, Value::Double(_))) => Ok(None),
        _ => Err(no_step()),
    }
}

fn incomparable(left: &Value, right: &Value) -> Halt {
    Halt::Failed(format!("cannot compare {} with {}", left.type_name(), right.type_name()))
}

fn twice() -> Halt {
    Halt::Failed("a mapping has the same key twice".to_owned())
}

fn too_large() -> Halt {
    Halt::Failed("a number is too large".to_owned())
}
