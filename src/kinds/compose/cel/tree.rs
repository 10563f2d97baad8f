//! The tree of an expression, from what the library's parser makes of its text: names resolved, macros named. Pure.

use std::{collections::BTreeSet, sync::Arc};

use kube_cel::cel::common::ast::{
    CallExpr, ComprehensionExpr, EntryExpr, Expr, IdedExpr, LiteralValue, SelectExpr, operators,
};

use super::{
    Name,
    functions::{self, Native},
    library,
    value::{Key, Value},
};

/// A node of an expression.
#[derive(Clone, Debug)]
pub(super) enum Node {
    Literal(Value),
    /// What an expression is shown.
    Known(Name),
    /// A variable of a macro around, by its number from the outside.
    Local(usize),
    /// A field, or an item.
    Index(Box<Step>),
    /// `has()`.
    Has(Box<Self>, Key),
    List(Vec<Self>),
    Map(Vec<(Self, Self)>),
    Conditional(Box<[Self; 3]>),
    And(Box<[Self; 2]>),
    Or(Box<[Self; 2]>),
    Not(Box<Self>),
    Negate(Box<Self>),
    Binary(Operator, Box<[Self; 2]>),
    Call(Call),
    Macro(Box<Macro>),
    /// `transformMapEntry()`: a mapping made of a list or a mapping, of which each entry is known by its key and its value.
    Entries(Box<Entries>),
}

#[derive(Clone, Debug)]
pub(super) struct Entries {
    pub(super) over: Node,
    pub(super) filter: Option<Node>,
    /// A mapping of what becomes of an entry.
    pub(super) body: Node,
}

/// A step into a value.
#[derive(Clone, Debug)]
pub(super) struct Step {
    pub(super) of: Node,
    pub(super) key: Node,
    /// Whose field it is in the end, as far as the text tells.
    pub(super) root: Option<Name>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operator {
    Add,
    Subtract,
    Multiply,
    Divide,
    Remainder,
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    In,
}

#[derive(Clone, Debug)]
pub(super) struct Call {
    pub(super) function: Arc<str>,
    /// How we do it ourselves, where the library takes too long, or answers by chance.
    pub(super) native: Option<Native>,
    /// Whether the first argument stood before the dot.
    pub(super) is_method: bool,
    pub(super) arguments: Vec<Node>,
}

#[derive(Clone, Debug)]
pub(super) struct Macro {
    pub(super) does: Does,
    pub(super) over: Node,
    /// Whether an item is taken at all.
    pub(super) filter: Option<Node>,
    /// What is asked of an item, or made of it.
    pub(super) body: Node,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Does {
    All,
    Exists,
    ExistsOne,
    Map,
}

/// Makes a tree of what was parsed, and notes what it refers to. The error says what is wrong with it.
#[derive(Default)]
pub(super) struct Growing {
    pub(super) refers: BTreeSet<Name>,
    /// The variables of the macros around, and what they go through.
    bound: Vec<(String, Option<Name>)>,
    depth: usize,
}

/// The deepest tree: it is gone through by recursion.
const DEEPEST: usize = 256;
const NOT_SUPPORTED: &str = "not supported";

impl Growing {
    pub(super) fn node(&mut self, parsed: &IdedExpr) -> Result<Node, String> {
        if self.depth == DEEPEST {
            return Err(format!("an expression of more than {DEEPEST} operators, fields and calls in one another"));
        }
        self.depth += 1;
        let node = self.grown(parsed);
        self.depth -= 1;
        node
    }

    fn grown(&mut self, parsed: &IdedExpr) -> Result<Node, String> {
        Ok(match &parsed.expr {
            Expr::Literal(literal) => Node::Literal(match literal {
                LiteralValue::Boolean(value) => Value::Bool(*value.inner()),
                LiteralValue::Int(value) => Value::Int(*value.inner()),
                LiteralValue::UInt(value) => Value::Uint(*value.inner()),
                LiteralValue::Double(value) => Value::Double(*value.inner()),
                LiteralValue::String(value) => Value::text(value.inner()),
                LiteralValue::Bytes(value) => Value::Bytes(value.inner().into()),
                LiteralValue::Null => Value::Null,
            }),
            Expr::Unspecified | Expr::Struct(_) => {
                return Err("messages such as `Name{field: …}` are not supported".to_owned());
            }
            Expr::Ident(name) => self.ident(name)?,
            Expr::Select(select) => self.select(select)?,
            Expr::List(list) if list.optional_indices.is_empty() => Node::List(self.nodes(&list.elements)?),
            Expr::List(_) => return Err(NOT_SUPPORTED.to_owned()),
            Expr::Map(map) => {
                let mut entries = Vec::new();
                for entry in &map.entries {
                    match &entry.expr {
                        EntryExpr::MapEntry(entry) if !entry.optional => {
                            entries.push((self.node(&entry.key)?, self.node(&entry.value)?));
                        }
                        _ => return Err(NOT_SUPPORTED.to_owned()),
                    }
                }
                Node::Map(entries)
            }
            Expr::Call(call) => self.call(call)?,
            Expr::Comprehension(comprehension) => self.comprehension(comprehension)?,
        })
    }

    fn nodes(&mut self, parsed: &[IdedExpr]) -> Result<Vec<Node>, String> {
        parsed.iter().map(|one| self.node(one)).collect()
    }

    fn is_bound(&self, name: &str) -> bool {
        self.bound.iter().any(|(bound, _)| bound == name)
    }

    fn ident(&mut self, name: &str) -> Result<Node, String> {
        if let Some(number) = self.bound.iter().rposition(|(bound, _)| bound == name) {
            return Ok(Node::Local(number));
        }
        match Name::plain(name) {
            Some(known) => {
                self.refers.insert(known.clone());
                Ok(Node::Known(known))
            }
            None if name == "children" || name == "related" => {
                Err(format!("write {name}.<id>: {name} as a whole is no value"))
            }
            None => Err(format!(
                "unknown name `{name}`; there are parent, children.<id>, related.<id>, \
                 each and index in what has a forEach, and self"
            )),
        }
    }

    fn select(&mut self, select: &SelectExpr) -> Result<Node, String> {
        if let Expr::Ident(of) = &select.operand.expr
            && (of == "children" || of == "related")
            && !self.is_bound(of)
        {
            if select.test {
                let field = &select.field;
                return Err(format!("has({of}.{field}) is always true: ask for a field of it"));
            }
            let id = select.field.clone();
            let name = if of == "children" { Name::Child(id) } else { Name::Related(id) };
            self.refers.insert(name.clone());
            return Ok(Node::Known(name));
        }
        let of = self.node(&select.operand)?;
        let field: Arc<str> = select.field.as_str().into();
        Ok(match select.test {
            true => Node::Has(Box::new(of), Key::String(field)),
            false => self.step(of, Node::Literal(Value::String(field))),
        })
    }

    fn step(&self, of: Node, key: Node) -> Node {
        let root = self.root(&of);
        Node::Index(Box::new(Step { of, key, root }))
    }

    /// What a value was taken from, as far as the text tells.
    fn root(&self, node: &Node) -> Option<Name> {
        match node {
            Node::Known(name) => Some(name.clone()),
            Node::Local(number) => self.bound.get(*number)?.1.clone(),
            Node::Index(step) => step.root.clone(),
            _ => None,
        }
    }

    fn call(&mut self, call: &CallExpr) -> Result<Node, String> {
        let name = call.func_name.as_str();
        if !name.starts_with(|first: char| first.is_ascii_alphabetic()) {
            let arguments = self.nodes(&call.args)?;
            return self.operator(name, arguments);
        }
        if let ("transformMapEntry", Some(target)) = (name, &call.target) {
            return self.entries(target, &call.args);
        }
        // `math.ceil(x)` is no method of a variable `math`.
        if let Some(IdedExpr { expr: Expr::Ident(space), .. }) = call.target.as_deref()
            && !self.is_bound(space)
            && Name::plain(space).is_none()
        {
            let qualified = format!("{space}.{name}");
            if functions::native(&qualified).is_some() || library::is_function(&qualified) {
                return self.called(&qualified, None, &call.args);
            }
        }
        if functions::native(name).is_none() && !library::is_function(name) {
            return Err(format!("unknown function `{name}`"));
        }
        self.called(name, call.target.as_deref(), &call.args)
    }

    /// The parser does not know this macro, and leaves it a call.
    fn entries(&mut self, over: &IdedExpr, arguments: &[IdedExpr]) -> Result<Node, String> {
        let ([IdedExpr { expr: Expr::Ident(key), .. }, IdedExpr { expr: Expr::Ident(value), .. }, rest @ ..], 1 | 2) =
            (arguments, arguments.len().saturating_sub(2))
        else {
            return Err("write transformMapEntry(key, value, {…}), or with a condition before the mapping".to_owned());
        };
        let over = self.node(over)?;
        let root = self.root(&over);
        self.bound.extend([(key.clone(), root.clone()), (value.clone(), root)]);
        let rest = self.nodes(rest);
        self.bound.truncate(self.bound.len() - 2);
        let mut rest = rest?;
        let Some(body) = rest.pop() else { return Err(NOT_SUPPORTED.to_owned()) };
        Ok(Node::Entries(Box::new(Entries { over, filter: rest.pop(), body })))
    }

    fn called(&mut self, name: &str, target: Option<&IdedExpr>, arguments: &[IdedExpr]) -> Result<Node, String> {
        let mut all = Vec::new();
        for one in target.into_iter().chain(arguments) {
            all.push(self.node(one)?);
        }
        let (function, native) = (name.into(), functions::native(name));
        Ok(Node::Call(Call { function, native, is_method: target.is_some(), arguments: all }))
    }

    fn operator(&self, name: &str, arguments: Vec<Node>) -> Result<Node, String> {
        let operator = match name {
            operators::ADD => Operator::Add,
            operators::SUBSTRACT => Operator::Subtract,
            operators::MULTIPLY => Operator::Multiply,
            operators::DIVIDE => Operator::Divide,
            operators::MODULO => Operator::Remainder,
            operators::EQUALS => Operator::Equal,
            operators::NOT_EQUALS => Operator::NotEqual,
            operators::LESS => Operator::Less,
            operators::LESS_EQUALS => Operator::LessOrEqual,
            operators::GREATER => Operator::Greater,
            operators::GREATER_EQUALS => Operator::GreaterOrEqual,
            operators::IN => Operator::In,
            _ => return self.other_operator(name, arguments),
        };
        let both = <[Node; 2]>::try_from(arguments).map_err(|_| NOT_SUPPORTED)?;
        Ok(Node::Binary(operator, Box::new(both)))
    }

    fn other_operator(&self, name: &str, arguments: Vec<Node>) -> Result<Node, String> {
        let wrong = |_| NOT_SUPPORTED.to_owned();
        Ok(match name {
            operators::CONDITIONAL => Node::Conditional(Box::new(arguments.try_into().map_err(wrong)?)),
            operators::LOGICAL_AND => Node::And(Box::new(arguments.try_into().map_err(wrong)?)),
            operators::LOGICAL_OR => Node::Or(Box::new(arguments.try_into().map_err(wrong)?)),
            operators::LOGICAL_NOT => {
                let [of] = arguments.try_into().map_err(wrong)?;
                Node::Not(Box::new(of))
            }
            operators::NEGATE => {
                let [of] = arguments.try_into().map_err(wrong)?;
                Node::Negate(Box::new(of))
            }
            operators::INDEX => {
                let [of, key] = arguments.try_into().map_err(wrong)?;
                self.step(of, key)
            }
            _ => return Err(NOT_SUPPORTED.to_owned()),
        })
    }

    /// The parser has written the macros out as loops. What each was shows in how its loop begins and goes on.
    fn comprehension(&mut self, it: &ComprehensionExpr) -> Result<Node, String> {
        if it.iter_var2.is_some() {
            return Err(NOT_SUPPORTED.to_owned());
        }
        let over = self.node(&it.iter_range)?;
        let root = self.root(&over);
        self.bound.push((it.iter_var.clone(), root));
        let parts = self.parts(it);
        self.bound.pop();
        let (does, filter, body) = parts?;
        Ok(Node::Macro(Box::new(Macro { does, over, filter, body })))
    }

    fn parts(&mut self, it: &ComprehensionExpr) -> Result<(Does, Option<Node>, Node), String> {
        let Expr::Call(step) = &it.loop_step.expr else { return Err(NOT_SUPPORTED.to_owned()) };
        match (&it.accu_init.expr, step.func_name.as_str(), &step.args[..]) {
            (Expr::Literal(LiteralValue::Boolean(_)), operators::LOGICAL_AND, [_, body]) => {
                Ok((Does::All, None, self.node(body)?))
            }
            (Expr::Literal(LiteralValue::Boolean(_)), operators::LOGICAL_OR, [_, body]) => {
                Ok((Does::Exists, None, self.node(body)?))
            }
            (Expr::Literal(LiteralValue::Int(_)), operators::CONDITIONAL, [body, _, _]) => {
                Ok((Does::ExistsOne, None, self.node(body)?))
            }
            (Expr::List(_), operators::CONDITIONAL, [filter, IdedExpr { expr: Expr::Call(step), .. }, _]) => {
                let filter = self.node(filter)?;
                Ok((Does::Map, Some(filter), self.appended(step)?))
            }
            (Expr::List(_), operators::ADD, _) => Ok((Does::Map, None, self.appended(step)?)),
            _ => Err(NOT_SUPPORTED.to_owned()),
        }
    }

    /// What is appended to the list that a macro makes.
    fn appended(&mut self, step: &CallExpr) -> Result<Node, String> {
        match &step.args[..] {
            [_, IdedExpr { expr: Expr::List(list), .. }] if list.elements.len() == 1 => self.node(&list.elements[0]),
            _ => Err(NOT_SUPPORTED.to_owned()),
        }
    }
}
