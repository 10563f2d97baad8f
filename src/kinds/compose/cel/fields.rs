//! Which fields an expression asks for that a schema does not have. Pure.
//!
//! What the text does not tell, such as the key that a variable holds, may be anything.

use super::{
    Expression, Name,
    parse::Operator,
    tree::{Does, Macro, Node, Step},
    value::{Key, Value},
};
use crate::kinds::openapi::{Field, Schema, absent};

/// The schema of a value, as far as it is known.
type Known<'s> = Option<Schema<'s>>;

impl Expression {
    /// What it asks for and a schema does not have, and the schema of what it makes. `of` is the schema of what an
    /// expression is shown.
    pub(in super::super) fn held<'s>(&self, of: &dyn Fn(&Name) -> Known<'s>) -> (Vec<String>, Known<'s>) {
        let mut walk = Walk { of, bound: Vec::new(), found: Vec::new() };
        let schema = walk.node(&self.tree);
        walk.found.dedup();
        (walk.found, schema)
    }
}

struct Walk<'w, 's> {
    of: &'w dyn Fn(&Name) -> Known<'s>,
    /// Variables of the macros around.
    bound: Vec<Known<'s>>,
    found: Vec<String>,
}

impl<'s> Walk<'_, 's> {
    fn node(&mut self, node: &Node) -> Known<'s> {
        match node {
            Node::Literal(_) => None,
            Node::Known(name) => (self.of)(name),
            Node::Local(number) => *self.bound.get(*number)?,
            Node::Index(step) => self.step(step),
            Node::Has(of, key) => {
                let schema = self.node(of);
                if let Key::String(name) = key {
                    self.field(schema, of, name);
                }
                None
            }
            Node::List(items) => {
                items.iter().for_each(|(_, item)| _ = self.node(item));
                None
            }
            Node::Map(entries) => {
                for (_, key, value) in entries {
                    self.node(key);
                    self.node(value);
                }
                None
            }
            Node::Conditional(parts) => {
                let [_, yes, no] = parts.each_ref().map(|part| self.node(part));
                yes.or(no)
            }
            Node::And(parts) | Node::Or(parts) => {
                parts.iter().for_each(|part| _ = self.node(part));
                None
            }
            Node::Not(of) | Node::Negate(of) => {
                self.node(of);
                None
            }
            Node::Binary(operator, sides) => {
                let [one, other] = sides.each_ref().map(|side| self.node(side));
                // Lists may be put together.
                if matches!(operator, Operator::Add) { one.or(other) } else { None }
            }
            Node::Call(call) => {
                call.arguments.iter().for_each(|argument| _ = self.node(argument));
                None
            }
            Node::Macro(of) => self.looped(of),
            Node::Bind(parts) => self.bind(&parts[0], &parts[1]),
            Node::Optional { parts, .. } => self.bind(&parts[0], &parts[1]),
            Node::Else { parts, .. } => {
                let [one, other] = parts.each_ref().map(|part| self.node(part));
                one.or(other)
            }
        }
    }

    fn bind(&mut self, value: &Node, body: &Node) -> Known<'s> {
        let value = self.node(value);
        self.within(&[value], |walk| walk.node(body))
    }

    fn within<T>(&mut self, variables: &[Known<'s>], inner: impl FnOnce(&mut Self) -> T) -> T {
        let before = self.bound.len();
        self.bound.extend_from_slice(variables);
        let outcome = inner(self);
        self.bound.truncate(before);
        outcome
    }

    fn step(&mut self, step: &Step) -> Known<'s> {
        let schema = self.node(&step.of);
        match &step.key {
            Node::Literal(Value::String(name)) => self.field(schema, &step.of, name),
            key => {
                self.node(key);
                let schema = schema?;
                schema.items().or_else(|| schema.values())
            }
        }
    }

    fn field(&mut self, schema: Known<'s>, of: &Node, name: &str) -> Known<'s> {
        match schema?.field(name) {
            Field::Known(schema) => Some(schema),
            Field::Free => None,
            Field::Absent(meant) => {
                self.found.push(format!("{}.{name}: {}", written(of), absent(meant)));
                None
            }
        }
    }

    fn looped(&mut self, of: &Macro) -> Known<'s> {
        let over = self.node(&of.over);
        let item = over.and_then(|over| over.items());
        // The variable of a mapping is its key.
        let value = item.or_else(|| over.and_then(|over| over.values()));
        let variables = if of.is_pair { vec![None, value] } else { vec![item] };
        let first = self.bound.len();
        self.within(&variables, |walk| {
            of.filter.iter().for_each(|filter| _ = walk.node(filter));
            walk.node(&of.body);
        });
        let is_same = matches!(of.does, Does::SortBy) || matches!(of.body, Node::Local(number) if number == first);
        over.filter(|_| is_same && !of.is_pair)
    }
}

/// What a value is taken from, as its author has written it, or nearly so.
fn written(node: &Node) -> String {
    match node {
        Node::Known(name) => name.variable(),
        Node::Index(step) => match &step.key {
            Node::Literal(Value::String(name)) => format!("{}.{name}", written(&step.of)),
            Node::Literal(Value::Int(number)) => format!("{}[{number}]", written(&step.of)),
            _ => format!("{}[…]", written(&step.of)),
        },
        _ => "…".to_owned(),
    }
}
