//! Evaluates a tree. Pure.
//!
//! Every node is paid for, and whatever goes through a value is paid for by its size before it does. What is made by a
//! macro is appended to, so that a macro takes as long as its range. An error is no value of an argument: a function never
//! sees one, and says nothing instead of it.

use std::{
    cell::RefCell,
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use regex::Regex;

use super::{
    Name,
    budget::{Budget, Spent},
    library::{self, refused},
    tree::{Call, Does, Entries, Macro, Node, Operator, Step},
    value::{Key, Value},
};

/// What every node costs.
const NODE: u64 = 32;
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

type Outcome = Result<Value, Halt>;

/// The types of some values, as messages name them.
pub(super) fn types(values: &[Value]) -> String {
    let mut names: Vec<_> = values.iter().take(8).map(Value::type_name).collect();
    if values.len() > names.len() {
        names.push("…");
    }
    names.join(", ")
}

/// Regular expressions by their text, so that each is compiled once for an object.
pub(super) type Patterns = RefCell<HashMap<Arc<str>, Regex>>;

/// One evaluation.
pub(super) struct Run<'a> {
    pub(super) known: &'a BTreeMap<Name, Value>,
    pub(super) budget: &'a Budget,
    pub(super) patterns: &'a Patterns,
    pub(super) locals: Vec<Value>,
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
            Node::Local(number) => Ok(self.locals.get(*number).cloned().unwrap_or(Value::Null)),
            Node::Index(step) => self.index(step),
            Node::Has(of, key) => match self.value(of)? {
                Value::Map(map) => Ok(Value::Bool(map.fields.contains_key(key))),
                other => Err(Halt::Failed(format!("has() asks for a field of {}", other.type_name()))),
            },
            Node::List(items) => {
                let items = items.iter().map(|item| self.value(item)).collect::<Result<Vec<_>, _>>()?;
                self.made(Value::list(items), 16 * 2)
            }
            Node::Map(entries) => self.map(entries),
            Node::Conditional(parts) => {
                let [condition, yes, no] = &**parts;
                match self.value(condition)? {
                    Value::Bool(true) => self.value(yes),
                    Value::Bool(false) => self.value(no),
                    other => Err(Halt::Failed(format!("the condition of `?` is {}", other.type_name()))),
                }
            }
            Node::And(parts) => self.both(parts, false),
            Node::Or(parts) => self.both(parts, true),
            Node::Not(of) => match self.value(of)? {
                Value::Bool(value) => Ok(Value::Bool(!value)),
                other => Err(Halt::Failed(format!("`!` has no value for {}", other.type_name()))),
            },
            Node::Negate(of) => match self.value(of)? {
                Value::Int(number) => number.checked_neg().map(Value::Int).ok_or_else(too_large),
                Value::Double(number) => Ok(Value::Double(-number)),
                other => Err(Halt::Failed(format!("`-` has no value for {}", other.type_name()))),
            },
            Node::Binary(operator, sides) => {
                let (left, right) = (self.value(&sides[0])?, self.value(&sides[1])?);
                self.binary(*operator, left, right)
            }
            Node::Call(call) => self.call(call),
            Node::Macro(it) => self.each(it),
            Node::Entries(it) => self.entries(it),
        }
    }

    /// A value of so much memory of its own; what it shares was paid for when it was made.
    fn made(&self, value: Value, own: u64) -> Outcome {
        let own = match &value {
            Value::List(list) => own + 16 * list.items.len() as u64,
            Value::Map(map) => own + 64 * map.fields.len() as u64,
            _ => own,
        };
        self.budget.make(own)?;
        Ok(value)
    }

    fn map(&mut self, entries: &[(Node, Node)]) -> Outcome {
        let mut fields = BTreeMap::new();
        for (key, value) in entries {
            let (key, value) = (self.value(key)?, self.value(value)?);
            // Keys are compared.
            self.budget.spend(key.size())?;
            let Some(key) = Key::of(&key) else {
                return Err(Halt::Failed(format!("a mapping cannot have a key that is {}", key.type_name())));
            };
            if fields.insert(key, value).is_some() {
                return Err(Halt::Failed("a mapping has the same key twice".to_owned()));
            }
        }
        self.made(Value::map(fields), 32)
    }

    fn index(&mut self, step: &Step) -> Outcome {
        let of = self.value(&step.of)?;
        let key = self.value(&step.key)?;
        let missing = |what: String| Halt::Missing { what, root: step.root.clone() };
        let no_step = || Halt::Failed(format!("{} has no field or item of {}", of.type_name(), key.type_name()));
        match &of {
            Value::Map(map) => {
                let found = map.fields.get(&Key::of(&key).ok_or_else(no_step)?);
                found.cloned().ok_or_else(|| match &step.key {
                    // What the text names is no secret.
                    Node::Literal(Value::String(name)) => {
                        missing(format!("there is no `{}`", name.chars().take(NAMED).collect::<String>()))
                    }
                    _ => missing("there is no such key".to_owned()),
                })
            }
            Value::List(list) => {
                let number = match Key::of(&key) {
                    Some(Key::Int(number)) => usize::try_from(number).ok(),
                    Some(Key::Uint(number)) => usize::try_from(number).ok(),
                    _ => return Err(no_step()),
                };
                let found = number.and_then(|number| list.items.get(number)).cloned();
                found.ok_or_else(|| missing("the list is shorter".to_owned()))
            }
            _ => Err(no_step()),
        }
    }

    /// `&&` and `||`: what decides it is the answer, even if the other side has none.
    fn both(&mut self, sides: &[Node; 2], decisive: bool) -> Outcome {
        let left = self.truth(&sides[0]);
        if let Ok(value) = left
            && value == decisive
        {
            return Ok(Value::Bool(decisive));
        }
        if let Err(Halt::Spent(spent)) = left {
            return Err(spent.into());
        }
        let right = self.truth(&sides[1])?;
        if right == decisive { Ok(Value::Bool(decisive)) } else { left.map(|_| Value::Bool(!decisive)) }
    }

    fn truth(&mut self, node: &Node) -> Result<bool, Halt> {
        match self.value(node)? {
            Value::Bool(value) => Ok(value),
            other => Err(Halt::Failed(format!("expected true or false, got {}", other.type_name()))),
        }
    }

    fn binary(&mut self, operator: Operator, left: Value, right: Value) -> Outcome {
        let order = match operator {
            Operator::Equal | Operator::NotEqual => {
                self.budget.spend(left.size().min(right.size()))?;
                return Ok(Value::Bool((left == right) == (operator == Operator::Equal)));
            }
            Operator::In => return self.is_in(&left, &right),
            Operator::Less | Operator::LessOrEqual | Operator::Greater | Operator::GreaterOrEqual => {
                self.budget.spend(left.size().min(right.size()))?;
                match (&left, &right) {
                    (Value::Null, _) | (_, Value::Null) => None,
                    _ => left.compare(&right),
                }
            }
            _ => return self.arithmetic(operator, left, right),
        };
        let is_number = |value: &Value| matches!(value, Value::Int(_) | Value::Uint(_) | Value::Double(_));
        let Some(order) = order else {
            if is_number(&left) && is_number(&right) {
                // No number at all is neither less nor more.
                return Ok(Value::Bool(false));
            }
            let message = format!("cannot compare {} with {}", left.type_name(), right.type_name());
            return Err(Halt::Failed(message));
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
                self.budget.spend(list.items.iter().map(|it| 16 + it.size().min(item.size())).sum())?;
                Ok(Value::Bool(list.items.contains(item)))
            }
            Value::Map(map) => Ok(Value::Bool(Key::of(item).is_some_and(|key| map.fields.contains_key(&key)))),
            other => Err(Halt::Failed(format!("`in` asks for an item of {}", other.type_name()))),
        }
    }

    fn arithmetic(&self, operator: Operator, left: Value, right: Value) -> Outcome {
        let (name, sign) = match operator {
            Operator::Add => ("add", "_+_"),
            Operator::Subtract => ("subtract", "_-_"),
            Operator::Multiply => ("multiply", "_*_"),
            Operator::Divide => ("divide", "_/_"),
            _ => ("take the remainder of", "_%_"),
        };
        match (&left, &right) {
            (Value::Int(_), Value::Int(0)) | (Value::Uint(_), Value::Uint(0))
                if matches!(operator, Operator::Divide | Operator::Remainder) =>
            {
                Err(Halt::Failed("division by zero".to_owned()))
            }
            (Value::Int(a), Value::Int(b)) => {
                let done = match operator {
                    Operator::Add => a.checked_add(*b),
                    Operator::Subtract => a.checked_sub(*b),
                    Operator::Multiply => a.checked_mul(*b),
                    Operator::Divide => a.checked_div(*b),
                    _ => a.checked_rem(*b),
                };
                done.map(Value::Int).ok_or_else(too_large)
            }
            (Value::Uint(a), Value::Uint(b)) => {
                let done = match operator {
                    Operator::Add => a.checked_add(*b),
                    Operator::Subtract => a.checked_sub(*b),
                    Operator::Multiply => a.checked_mul(*b),
                    Operator::Divide => a.checked_div(*b),
                    _ => a.checked_rem(*b),
                };
                done.map(Value::Uint).ok_or_else(too_large)
            }
            (Value::Double(a), Value::Double(b)) if operator != Operator::Remainder => {
                Ok(Value::Double(match operator {
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
                Ok(Value::text(text))
            }
            (Value::Bytes(a), Value::Bytes(b)) if operator == Operator::Add => {
                self.budget.make(32 + a.len() as u64 + b.len() as u64)?;
                Ok(Value::Bytes([&**a, &**b].concat().into()))
            }
            (Value::List(a), Value::List(b)) if operator == Operator::Add => {
                self.budget.spend(16 * (a.items.len() + b.items.len()) as u64)?;
                self.made(Value::list(a.items.iter().chain(&b.items).cloned().collect()), 32)
            }
            (Value::Foreign(_), Value::Foreign(_)) => library::call(sign, false, &[left, right]),
            _ => Err(Halt::Failed(format!("cannot {name} {} and {}", left.type_name(), right.type_name()))),
        }
    }

    fn call(&mut self, call: &Call) -> Outcome {
        // An argument without a value is no argument: its own error is the answer.
        let mut arguments = Vec::with_capacity(call.arguments.len());
        for argument in &call.arguments {
            arguments.push(self.value(argument)?);
        }
        if let Some(native) = call.native
            && let Some(value) = native(self, &arguments)?
        {
            return Ok(value);
        }
        let size = arguments.iter().map(Value::size).fold(64, u64::saturating_add);
        // They are copied, and what is made of them is not larger by much.
        self.budget.spend(size.saturating_mul(8))?;
        let value = library::call(&call.function, call.is_method, &arguments)?;
        self.budget.make(value.size())?;
        Ok(value)
    }

    fn each(&mut self, it: &Macro) -> Outcome {
        let range = match self.value(&it.over)? {
            Value::List(list) => list.items.clone(),
            Value::Map(map) => map.fields.keys().map(Key::value).collect(),
            other => {
                return Err(Halt::Failed(format!(
                    "a macro goes through a list or a mapping, not {}",
                    other.type_name()
                )));
            }
        };
        self.budget.spend(16 * range.len() as u64)?;
        let depth = self.locals.len();
        let outcome = self.rounds(it, range);
        self.locals.truncate(depth);
        outcome
    }

    fn rounds(&mut self, it: &Macro, range: Vec<Value>) -> Outcome {
        let number = self.locals.len();
        self.locals.push(Value::Null);
        let mut made = Vec::new();
        let mut count = 0_u64;
        // An error is the answer of `all` and `exists` only if no other item decides.
        let mut undecided = None;
        for item in range {
            self.budget.spend(NODE)?;
            self.locals[number] = item;
            match it.does {
                Does::Map => {
                    if let Some(filter) = &it.filter
                        && !self.truth(filter)?
                    {
                        continue;
                    }
                    self.budget.make(32)?;
                    made.push(self.value(&it.body)?);
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
            (Does::Map, _) => Ok(Value::list(made)),
            (Does::ExistsOne, _) => Ok(Value::Bool(count == 1)),
            (Does::All, _) => Ok(Value::Bool(true)),
            (Does::Exists, _) => Ok(Value::Bool(false)),
        }
    }

    fn entries(&mut self, it: &Entries) -> Outcome {
        let pairs: Vec<(Value, Value)> = match self.value(&it.over)? {
            Value::Map(map) => map.fields.iter().map(|(key, value)| (key.value(), value.clone())).collect(),
            Value::List(list) => (0..).map(Value::Int).zip(list.items.iter().cloned()).collect(),
            other => {
                let message = format!("a macro goes through a list or a mapping, not {}", other.type_name());
                return Err(Halt::Failed(message));
            }
        };
        self.budget.spend(32 * pairs.len() as u64)?;
        let depth = self.locals.len();
        let mut fields = BTreeMap::new();
        let mut outcome = Ok(());
        for (key, value) in pairs {
            self.locals.extend([key, value]);
            outcome = self.entry(it, &mut fields);
            self.locals.truncate(depth);
            if outcome.is_err() {
                break;
            }
        }
        outcome?;
        self.made(Value::map(fields), 32)
    }

    fn entry(&mut self, it: &Entries, fields: &mut BTreeMap<Key, Value>) -> Result<(), Halt> {
        self.budget.spend(NODE)?;
        if let Some(filter) = &it.filter
            && !self.truth(filter)?
        {
            return Ok(());
        }
        let Value::Map(made) = self.value(&it.body)? else {
            return Err(Halt::Failed("transformMapEntry makes mappings only".to_owned()));
        };
        for (key, value) in &made.fields {
            if fields.insert(key.clone(), value.clone()).is_some() {
                return Err(Halt::Failed("a mapping has the same key twice".to_owned()));
            }
        }
        Ok(())
    }

    /// A regular expression, compiled once and within bounds.
    pub(super) fn pattern(&self, function: &str, text: &Arc<str>) -> Result<Regex, Halt> {
        if let Some(pattern) = self.patterns.borrow().get(text) {
            return Ok(pattern.clone());
        }
        // It takes as long as what it makes of it is large, and that is bounded.
        self.budget.spend(PATTERN as u64 * 2)?;
        let built = regex::RegexBuilder::new(text).size_limit(PATTERN).dfa_size_limit(PATTERN).build();
        let pattern = built.map_err(|_| refused(function, &[Value::String(Arc::clone(text))]))?;
        self.patterns.borrow_mut().insert(Arc::clone(text), pattern.clone());
        Ok(pattern)
    }
}

/// The largest compiled regular expression, in bytes.
const PATTERN: usize = 1 << 18;

fn too_large() -> Halt {
    Halt::Failed("a number is too large".to_owned())
}
