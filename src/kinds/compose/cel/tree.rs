//! The tree of an expression, from what was read of its text: names and functions resolved, macros named. Pure.

use std::{collections::BTreeSet, sync::Arc};

use super::{
    Name,
    functions::{self, Native},
    parse::{Ast, Operator},
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
    /// Items, and whether an item is an optional value that is left out if there is none.
    List(Vec<(bool, Self)>),
    Map(Vec<(bool, Self, Self)>),
    Conditional(Box<[Self; 3]>),
    And(Vec<Self>),
    Or(Vec<Self>),
    Not(Box<Self>),
    Negate(Box<Self>),
    Binary(Operator, Box<[Self; 2]>),
    Call(Call),
    Macro(Box<Macro>),
    /// `cel.bind()`: a value that the other may name.
    Bind(Box<[Self; 2]>),
    /// `optMap()`, and `optFlatMap()` if what is made is optional by itself.
    Optional {
        parts: Box<[Self; 2]>,
        is_flat: bool,
    },
    /// `or()`, and `orValue()` if it ends in a value.
    Else {
        parts: Box<[Self; 2]>,
        is_value: bool,
    },
}

/// A step into a value.
#[derive(Clone, Debug)]
pub(super) struct Step {
    pub(super) of: Node,
    pub(super) key: Node,
    /// Whether it makes an optional value, as `.?` and `[?…]` do.
    pub(super) is_optional: bool,
    /// Whose field it is in the end, as far as the text tells.
    pub(super) root: Option<Name>,
}

#[derive(Clone, Debug)]
pub(super) struct Call {
    pub(super) function: Arc<str>,
    pub(super) native: Native,
    pub(super) arguments: Vec<Node>,
}

#[derive(Clone, Debug)]
pub(super) struct Macro {
    pub(super) does: Does,
    pub(super) over: Node,
    /// Whether an item has two variables: its number or key, and itself.
    pub(super) is_pair: bool,
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
    /// A list of what is made of each.
    List,
    /// A mapping of the same keys.
    Map,
    /// A mapping of the entries that are made of each.
    Entries,
    /// The list in the order of what is made of each.
    SortBy,
}

/// Makes a tree of what was read, and notes what it refers to. The error says what is wrong with it.
#[derive(Default)]
pub(super) struct Growing {
    pub(super) refers: BTreeSet<Name>,
    /// The variables of the macros around, and what they go through.
    bound: Vec<(String, Option<Name>)>,
    depth: usize,
}

/// The deepest tree: it is gone through by recursion.
const DEEPEST: usize = 200;

/// Types by the names that expressions have for them.
const TYPES: [&str; 18] = [
    "bool",
    "int",
    "uint",
    "double",
    "string",
    "bytes",
    "list",
    "map",
    "null_type",
    "type",
    "optional_type",
    "google.protobuf.Timestamp",
    "google.protobuf.Duration",
    "net.IP",
    "net.CIDR",
    "kubernetes.Quantity",
    "kubernetes.URL",
    "kubernetes.Semver",
];

impl Growing {
    pub(super) fn node(&mut self, ast: &Ast) -> Result<Node, String> {
        if self.depth == DEEPEST {
            return Err(format!("an expression of more than {DEEPEST} operators, fields and calls in one another"));
        }
        self.depth += 1;
        let node = self.grown(ast);
        self.depth -= 1;
        node
    }

    fn boxed<const COUNT: usize>(&mut self, parts: &[Ast; COUNT]) -> Result<Box<[Node; COUNT]>, String> {
        let nodes = self.nodes(parts)?;
        nodes.try_into().map(Box::new).map_err(|_| "not supported".to_owned())
    }

    fn grown(&mut self, ast: &Ast) -> Result<Node, String> {
        Ok(match ast {
            Ast::Literal(value) => Node::Literal(value.clone()),
            Ast::Ident(name) => self.ident(name)?,
            Ast::Select { of, field, is_optional } => self.select(ast, of, field, *is_optional)?,
            Ast::Index { of, key, is_optional } => {
                let (of, key) = (self.node(of)?, self.node(key)?);
                self.step(of, key, *is_optional)
            }
            Ast::List(items) => {
                let items = items.iter().map(|(is_optional, item)| Ok((*is_optional, self.node(item)?)));
                Node::List(items.collect::<Result<_, String>>()?)
            }
            Ast::Map(entries) => {
                let mut nodes = Vec::with_capacity(entries.len());
                for (is_optional, key, value) in entries {
                    nodes.push((*is_optional, self.node(key)?, self.node(value)?));
                }
                Node::Map(nodes)
            }
            Ast::Conditional(parts) => Node::Conditional(self.boxed(parts)?),
            Ast::And(parts) => Node::And(self.nodes(parts)?),
            Ast::Or(parts) => Node::Or(self.nodes(parts)?),
            Ast::Not(of) => Node::Not(Box::new(self.node(of)?)),
            Ast::Negate(of) => Node::Negate(Box::new(self.node(of)?)),
            Ast::Binary(operator, sides) => Node::Binary(*operator, self.boxed(sides)?),
            Ast::Call { target: None, name, arguments } if name == "has" => self.has(arguments)?,
            Ast::Call { target: None, name, arguments } => self.called(name, None, arguments)?,
            Ast::Call { target: Some(target), name, arguments } => self.method(target, name, arguments)?,
        })
    }

    fn nodes(&mut self, parts: &[Ast]) -> Result<Vec<Node>, String> {
        parts.iter().map(|one| self.node(one)).collect()
    }

    fn is_bound(&self, name: &str) -> bool {
        self.bound.iter().any(|(bound, _)| bound == name)
    }

    fn ident(&mut self, name: &str) -> Result<Node, String> {
        if let Some(number) = self.bound.iter().rposition(|(bound, _)| bound == name) {
            return Ok(Node::Local(number));
        }
        if let Some(known) = TYPES.iter().find(|known| **known == name) {
            return Ok(Node::Literal(Value::Type(known)));
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

    /// The names that a namespace is written with, if none of them is a variable.
    fn dotted(&self, ast: &Ast) -> Option<String> {
        match ast {
            Ast::Ident(name) if !self.is_bound(name) && Name::plain(name).is_none() => Some(name.clone()),
            Ast::Select { of, field, is_optional: false } => Some(format!("{}.{field}", self.dotted(of)?)),
            _ => None,
        }
    }

    fn select(&mut self, ast: &Ast, of: &Ast, field: &str, is_optional: bool) -> Result<Node, String> {
        if let Some(space) = self.space(of) {
            if is_optional && space == "children" {
                let name = Name::Maybe(field.to_owned());
                self.refers.insert(name.clone());
                return Ok(self.step(Node::Known(name), Node::Literal(Value::text(field)), true));
            }
            if is_optional {
                return Err(format!("{space}.{field} is no optional value: write {space}.{field}.?field"));
            }
            let name =
                if space == "children" { Name::Child(field.to_owned()) } else { Name::Related(field.to_owned()) };
            self.refers.insert(name.clone());
            return Ok(Node::Known(name));
        }
        if let Some(dotted) = self.dotted(ast)
            && let Some(known) = TYPES.iter().find(|known| **known == dotted)
        {
            return Ok(Node::Literal(Value::Type(known)));
        }
        let of = self.node(of)?;
        Ok(self.step(of, Node::Literal(Value::text(field)), is_optional))
    }

    /// Whether it stands for all children, or all that is related.
    fn space(&self, ast: &Ast) -> Option<&'static str> {
        match ast {
            Ast::Ident(name) if !self.is_bound(name) => ["children", "related"].into_iter().find(|space| space == name),
            _ => None,
        }
    }

    fn step(&self, of: Node, key: Node, is_optional: bool) -> Node {
        let root = self.root(&of);
        Node::Index(Box::new(Step { of, key, is_optional, root }))
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

    fn has(&mut self, arguments: &[Ast]) -> Result<Node, String> {
        let [Ast::Select { of, field, is_optional: false }] = arguments else {
            return Err("has() asks for a field: write has(object.field)".to_owned());
        };
        if let Some(space) = self.space(of) {
            let advice =
                if space == "children" { format!(", or write children.?{field}.hasValue()") } else { String::new() };
            return Err(format!("has({space}.{field}) is always true: ask for a field of it{advice}"));
        }
        let of = self.node(of)?;
        Ok(Node::Has(Box::new(of), Key::String(field.as_str().into())))
    }

    fn method(&mut self, target: &Ast, name: &str, arguments: &[Ast]) -> Result<Node, String> {
        // `math.ceil(x)` is no method of a variable `math`.
        if let Some(space) = self.dotted(target) {
            let qualified = format!("{space}.{name}");
            if qualified == "cel.bind" {
                return self.bind(arguments);
            }
            if functions::is_function(&qualified) {
                if ["math.greatest", "math.least"].contains(&&*qualified) {
                    numbers(&qualified, arguments)?;
                }
                return self.called(&qualified, None, arguments);
            }
        }
        let pair = arguments.len() >= 3 && matches!(arguments[1], Ast::Ident(_));
        let does = match (name, arguments.len()) {
            ("all", 2 | 3) => Some(Does::All),
            ("exists", 2 | 3) => Some(Does::Exists),
            ("exists_one", 2 | 3) | ("existsOne", 3) => Some(Does::ExistsOne),
            ("existsOne", 2) => return Err("with one variable it is written exists_one".to_owned()),
            ("map", 2 | 3) => return self.looped(Does::List, target, name, arguments, false),
            ("filter", 2) => return self.filter(target, arguments),
            ("sortBy", 2) => return self.looped(Does::SortBy, target, name, arguments, false),
            ("transformList", 3 | 4) if pair => Some(Does::List),
            ("transformMap", 3 | 4) if pair => Some(Does::Map),
            ("transformMapEntry", 3 | 4) if pair => Some(Does::Entries),
            ("transformList" | "transformMap" | "transformMapEntry", _) => {
                let made = if name == "transformMapEntry" { "{…}" } else { "…" };
                return Err(format!("write {name}(key, value, {made}), or with a condition before what is made"));
            }
            ("optMap" | "optFlatMap", 2) => {
                let of = self.node(target)?;
                let root = self.root(&of);
                let body = self.within(&[(variable(&arguments[0], name)?, root)], &arguments[1..])?;
                let [body] = <[Node; 1]>::try_from(body).map_err(|_| "not supported")?;
                return Ok(Node::Optional { parts: Box::new([of, body]), is_flat: name == "optFlatMap" });
            }
            ("or" | "orValue", 1) => {
                let parts = Box::new([self.node(target)?, self.node(&arguments[0])?]);
                return Ok(Node::Else { parts, is_value: name == "orValue" });
            }
            _ => None,
        };
        match does {
            Some(does) => {
                let is_pair = !matches!(does, Does::All | Does::Exists | Does::ExistsOne) || arguments.len() == 3;
                self.looped(does, target, name, arguments, is_pair)
            }
            None => self.called(name, Some(target), arguments),
        }
    }

    /// What stands within a macro: it sees these variables as well.
    fn within(&mut self, variables: &[(String, Option<Name>)], parts: &[Ast]) -> Result<Vec<Node>, String> {
        let before = self.bound.len();
        self.bound.extend_from_slice(variables);
        let nodes = self.nodes(parts);
        self.bound.truncate(before);
        nodes
    }

    fn looped(&mut self, does: Does, over: &Ast, name: &str, arguments: &[Ast], is_pair: bool) -> Result<Node, String> {
        let over = self.node(over)?;
        let root = self.root(&over);
        let (names, rest) = arguments.split_at(1 + usize::from(is_pair));
        let mut variables = Vec::new();
        for one in names {
            variables.push((variable(one, name)?, root.clone()));
        }
        if let [(first, _), (second, _)] = &*variables
            && first == second
        {
            return Err(format!("{name}() has the variable `{first}` twice"));
        }
        let mut rest = self.within(&variables, rest)?;
        let body = rest.pop().ok_or("not supported")?;
        Ok(Node::Macro(Box::new(Macro { does, over, is_pair, filter: rest.pop(), body })))
    }

    fn filter(&mut self, over: &Ast, arguments: &[Ast]) -> Result<Node, String> {
        let over = self.node(over)?;
        let root = self.root(&over);
        let filter = self.within(&[(variable(&arguments[0], "filter")?, root)], &arguments[1..])?.pop();
        let body = Node::Local(self.bound.len());
        Ok(Node::Macro(Box::new(Macro { does: Does::List, over, is_pair: false, filter, body })))
    }

    fn bind(&mut self, arguments: &[Ast]) -> Result<Node, String> {
        let [name, value, body] = arguments else { return Err("write cel.bind(name, value, expression)".to_owned()) };
        let value = self.node(value)?;
        let root = self.root(&value);
        let body = self.within(&[(variable(name, "cel.bind")?, root)], std::slice::from_ref(body))?;
        let [body] = <[Node; 1]>::try_from(body).map_err(|_| "not supported")?;
        Ok(Node::Bind(Box::new([value, body])))
    }

    fn called(&mut self, name: &str, target: Option<&Ast>, arguments: &[Ast]) -> Result<Node, String> {
        let native = functions::find(name, target.is_some(), arguments.len())?;
        let mut all = Vec::new();
        for one in target.into_iter().chain(arguments) {
            all.push(self.node(one)?);
        }
        if ["matches", "find", "findAll"].contains(&name)
            && let Some(Node::Literal(Value::String(pattern))) = all.get(1)
        {
            functions::patterns::check(pattern).map_err(|why| format!("{name}: {why}"))?;
        }
        Ok(Node::Call(Call { function: name.into(), native, arguments: all }))
    }
}

fn variable(ast: &Ast, of: &str) -> Result<String, String> {
    match ast {
        Ast::Ident(name) => Ok(name.clone()),
        _ => Err(format!("{of}() begins with the name of a variable")),
    }
}

/// `math.greatest` takes numbers, or one list that is written out.
fn numbers(name: &str, arguments: &[Ast]) -> Result<(), String> {
    let may_be = |ast: &Ast| match ast {
        Ast::Literal(value) => matches!(value, Value::Int(_) | Value::Uint(_) | Value::Double(_)),
        Ast::List(_) | Ast::Map(_) => false,
        _ => true,
    };
    let is_list = |ast: &Ast| match ast {
        Ast::List(items) => !items.is_empty() && items.iter().all(|(_, item)| may_be(item)),
        _ => false,
    };
    match arguments {
        [one] if is_list(one) => Ok(()),
        [] => Err(format!("{name}() needs a number")),
        all if all.iter().all(may_be) => Ok(()),
        _ => Err(format!("{name}() takes numbers")),
    }
}
