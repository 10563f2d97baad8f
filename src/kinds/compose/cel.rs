//! Expressions: the Common Expression Language, compiled once and evaluated within bounds.
//!
//! The language and its Kubernetes functions are those of `kube-cel`. What is added here is what an expression may see,
//! and what it may cost: the library has no budget, so the syntax tree is rewritten to pay as it goes. Each round of a macro and
//! each value that is made has a price, and whoever has spent the budget gets an error. It is counted and not timed,
//! so that the same objects give the same result on every replica and on every day. Pure.

use std::{
    cell::Cell,
    collections::{BTreeSet, HashMap},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, LazyLock},
};

use kube_cel::{
    KubeCelExt,
    cel::{
        Context, ExecutionError, FunctionContext, Value,
        common::ast::{CallExpr, ComprehensionExpr, EntryExpr, Expr, IdedExpr, LiteralValue, operators},
        objects::{Key, Map},
        parser::Parser,
    },
};
use serde_json::{Number, Value as Json};

/// The longest text of one expression.
const LONGEST: usize = 4096;
/// The deepest nesting of brackets, and of choices: the parser of the library goes as deep as the text does.
const DEEPEST: usize = 24;
/// What the expressions of an object may see, in bytes: the object, its children, and what is related.
const SEEN: u64 = 32 << 20;
/// What one evaluation of an object may make, in bytes, and so about what it may take of memory.
const MADE: u64 = 32 << 20;
/// What it may touch: each round of a macro copies what was made so far.
const TOUCHED: u64 = 1 << 30;
/// What a round costs whatever it does.
const ROUND: u64 = 1024;

const TICK: &str = "@tick";
const CHARGED: &str = "@charged";
const KEYS: &str = "@keys";
const TIMES: &str = "@times";

/// A compiled expression.
#[derive(Debug, Clone)]
pub(super) struct Expression {
    text: String,
    tree: IdedExpr,
    refers: BTreeSet<Name>,
}

/// What an expression may refer to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Name {
    /// The object that is reconciled.
    Parent,
    /// The item of a `forEach`.
    Each,
    /// Its number, from 0.
    Index,
    /// The child that a `readyWhen` is about.
    Myself,
    /// A child by id: the object, or a list of them if it has a `forEach`; as it was last seen.
    Child(String),
    /// Related objects by id: a list.
    Related(String),
    /// The object before an update that is asked for; null for a creation.
    Old,
    /// Who asks for a write: `username`, `groups`.
    User,
}

impl Name {
    fn variable(&self) -> String {
        match self {
            Self::Parent => "parent".to_owned(),
            Self::Each => "each".to_owned(),
            Self::Index => "index".to_owned(),
            Self::Myself => "self".to_owned(),
            Self::Child(id) => format!("children.{id}"),
            Self::Related(id) => format!("related.{id}"),
            Self::Old => "old".to_owned(),
            Self::User => "user".to_owned(),
        }
    }

    fn plain(variable: &str) -> Option<Self> {
        match variable {
            "parent" => Some(Self::Parent),
            "each" => Some(Self::Each),
            "index" => Some(Self::Index),
            "self" => Some(Self::Myself),
            "old" => Some(Self::Old),
            "user" => Some(Self::User),
            _ => None,
        }
    }
}

impl Expression {
    /// Compiles the text between `${` and `}`. The error says what is wrong with it.
    pub(super) fn compile(text: &str) -> Result<Self, String> {
        if text.trim().is_empty() {
            return Err("an empty expression".to_owned());
        }
        if text.len() > LONGEST {
            return Err(format!("an expression of {} bytes; the most is {LONGEST}", text.len()));
        }
        if depth(text) > DEEPEST {
            return Err(format!("an expression of brackets and choices more than {DEEPEST} deep"));
        }
        // The parser of the library is known to panic on what it does not support.
        let parsed = catch_unwind(|| Parser::default().parse(text)).map_err(|_| "not supported".to_owned())?;
        let mut tree = parsed.map_err(|errors| {
            let first = errors.errors.first();
            first.map_or_else(String::new, |first| format!("column {}: {}", first.pos.1, one_line(&first.msg)))
        })?;
        let mut rewriting = Rewriting::default();
        rewriting.walk(&mut tree, &mut Vec::new());
        match rewriting.wrong {
            Some(wrong) => Err(wrong),
            None => Ok(Self { text: text.trim().to_owned(), tree, refers: rewriting.refers }),
        }
    }

    /// Its text.
    pub(super) fn text(&self) -> &str {
        &self.text
    }

    /// What it refers to.
    pub(super) fn refers(&self) -> &BTreeSet<Name> {
        &self.refers
    }
}

/// At most so deep can brackets and choices be nested in it; those within texts count as well.
fn depth(text: &str) -> usize {
    let (mut open, mut deepest, mut choices) = (0_usize, 0, 0);
    for character in text.chars() {
        match character {
            '(' | '[' | '{' => {
                open += 1;
                deepest = deepest.max(open);
            }
            ')' | ']' | '}' => open = open.saturating_sub(1),
            '?' => choices += 1,
            _ => {}
        }
    }
    deepest.max(choices)
}

/// Makes an expression pay, and looks for what it refers to.
#[derive(Default)]
struct Rewriting {
    refers: BTreeSet<Name>,
    wrong: Option<String>,
}

impl Rewriting {
    fn object(&mut self, wrong: impl Into<String>) {
        self.wrong.get_or_insert(wrong.into());
    }

    /// `bound` are the variables of the macros around.
    fn walk(&mut self, node: &mut IdedExpr, bound: &mut Vec<String>) {
        match &mut node.expr {
            Expr::Literal(_) => {}
            Expr::Unspecified | Expr::Struct(_) => self.object("messages such as `Name{field: …}` are not supported"),
            Expr::Ident(name) => {
                if bound.contains(name) {
                    return;
                }
                match Name::plain(name) {
                    Some(known) => _ = self.refers.insert(known),
                    None if name == "children" || name == "related" => {
                        self.object(format!("write {name}.<id>: {name} as a whole is no value"));
                    }
                    None => self.object(format!(
                        "unknown name `{name}`; there are parent, children.<id>, related.<id>, \
                         each and index in what has a forEach, and self in readyWhen"
                    )),
                }
            }
            Expr::Select(select) => {
                if let Expr::Ident(of) = &select.operand.expr
                    && (of == "children" || of == "related")
                    && !bound.contains(of)
                {
                    if select.test {
                        let field = &select.field;
                        return self.object(format!("has({of}.{field}) is always true: ask for a field of it"));
                    }
                    let id = select.field.clone();
                    let name = if of == "children" { Name::Child(id) } else { Name::Related(id) };
                    node.expr = Expr::Ident(name.variable());
                    _ = self.refers.insert(name);
                    return;
                }
                self.walk(&mut select.operand, bound);
                if !select.test {
                    // The library answers `false` for a field of what has no fields; an index of it is an error.
                    let field = LiteralValue::String(select.field.as_str().into());
                    let field = IdedExpr { id: 0, expr: Expr::Literal(field) };
                    let of = std::mem::take(&mut *select.operand);
                    *node = calling(operators::INDEX, vec![of, field]);
                }
            }
            Expr::List(list) => {
                for element in &mut list.elements {
                    self.walk(element, bound);
                    charge(element);
                }
            }
            Expr::Map(map) => {
                for entry in &mut map.entries {
                    match &mut entry.expr {
                        EntryExpr::MapEntry(entry) => {
                            self.walk(&mut entry.key, bound);
                            self.walk(&mut entry.value, bound);
                            charge(&mut entry.key);
                            charge(&mut entry.value);
                        }
                        EntryExpr::StructField(_) => self.object("messages are not supported"),
                    }
                }
            }
            Expr::Call(call) => self.call(call, bound),
            Expr::Comprehension(comprehension) => self.comprehension(comprehension, bound),
        }
        if let Expr::Call(call) = &node.expr
            && !is_operator(&call.func_name)
        {
            charge(node);
        }
    }

    fn call(&mut self, call: &mut CallExpr, bound: &mut Vec<String>) {
        // `math.ceil(x)` is no method of a variable `math`.
        let space = match call.target.as_deref() {
            Some(IdedExpr { expr: Expr::Ident(space), .. })
                if !bound.contains(space) && Name::plain(space).is_none() =>
            {
                is_function(&format!("{space}.{}", call.func_name)).then(|| space.clone())
            }
            _ => None,
        };
        if !is_operator(&call.func_name) && space.is_none() && !is_function(&call.func_name) {
            self.object(format!("unknown function `{}`", call.func_name));
        }
        if let (None, Some(target)) = (&space, &mut call.target) {
            self.walk(target, bound);
        }
        for argument in &mut call.args {
            self.walk(argument, bound);
        }
        if call.func_name == operators::ADD {
            call.args.iter_mut().for_each(charge);
        }
        // What these make is as long as the product of what they get.
        if let ("replace" | "join", Some(target), Some(last)) =
            (call.func_name.as_str(), &call.target, call.args.last_mut())
        {
            let factors = vec![(**target).clone(), last.clone()];
            *last = calling(TIMES, factors);
        }
    }

    fn comprehension(&mut self, it: &mut ComprehensionExpr, bound: &mut Vec<String>) {
        self.walk(&mut it.iter_range, bound);
        if it.iter_var2.is_none() {
            // The library goes through a mapping in an order that changes from process to process.
            it.iter_range = calling(KEYS, vec![std::mem::take(&mut it.iter_range)]);
        }
        self.walk(&mut it.accu_init, bound);
        let depth = bound.len();
        bound.push(it.accu_var.clone());
        bound.push(it.iter_var.clone());
        bound.extend(it.iter_var2.clone());
        self.walk(&mut it.loop_cond, bound);
        self.walk(&mut it.loop_step, bound);
        self.walk(&mut it.result, bound);
        bound.truncate(depth);
        // Not under the operators that take an error for an answer, as `exists` does.
        let condition = std::mem::take(&mut it.loop_cond);
        it.loop_cond = calling(operators::CONDITIONAL, vec![calling(TICK, Vec::new()), condition.clone(), condition]);
    }
}

fn is_operator(name: &str) -> bool {
    !name.starts_with(|first: char| first.is_ascii_alphabetic())
}

fn calling(function: &str, args: Vec<IdedExpr>) -> IdedExpr {
    IdedExpr { id: 0, expr: Expr::Call(CallExpr { func_name: function.to_owned(), target: None, args }) }
}

/// What is made of it is paid for. The value of a macro so far was paid for when it was made, and a literal is in the text.
fn charge(node: &mut IdedExpr) {
    let free = match &node.expr {
        Expr::Literal(_) | Expr::List(_) | Expr::Map(_) => true,
        Expr::Ident(name) => name.starts_with('@'),
        Expr::Call(call) => call.func_name == CHARGED,
        _ => false,
    };
    if !free {
        *node = calling(CHARGED, vec![std::mem::take(node)]);
    }
}

/// Whether the library has a function of that name: it says so of one that gets no arguments.
fn is_function(name: &str) -> bool {
    let call = calling(name, Vec::new());
    let outcome = catch_unwind(AssertUnwindSafe(|| FUNCTIONS.resolve(&call)));
    !matches!(outcome, Ok(Err(ExecutionError::UndeclaredReference(unknown))) if unknown.as_str() == name)
}

/// Why an expression has no value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Unknown {
    /// A field, or an item, that is not there. It may come.
    Missing(String),
    /// Anything else.
    Failed(String),
}

/// What the expressions of one object share: what they see, and what they have spent.
pub(super) struct Evaluation<'a> {
    context: Context<'a>,
}

thread_local! {
    /// What the evaluation that runs on this thread has spent. One runs at a time, from its beginning to its end.
    static BUDGET: Cell<Budget> = const { Cell::new(Budget { seen: 0, made: 0, touched: 0 }) };
}

#[derive(Clone, Copy)]
struct Budget {
    seen: u64,
    made: u64,
    touched: u64,
}

/// Counts what is shown. Whoever has been shown too much can make nothing of it.
fn see(bytes: u64) {
    let Budget { seen, made, touched } = BUDGET.get();
    BUDGET.set(Budget { seen: seen.saturating_add(bytes), made, touched });
}

/// Pays for a value of so many bytes.
fn make(bytes: u64) -> Result<(), ExecutionError> {
    let Budget { seen, made, touched } = BUDGET.get();
    let made = made.saturating_add(bytes);
    BUDGET.set(Budget { seen, made, touched });
    if seen > SEEN {
        return Err(ExecutionError::function_error("", TOO_MUCH));
    }
    if made > MADE { Err(ExecutionError::function_error("", TOO_LARGE)) } else { Ok(()) }
}

/// Pays for a round of a macro.
fn tick() -> Result<(), ExecutionError> {
    let Budget { seen, made, touched } = BUDGET.get();
    let touched = touched.saturating_add(ROUND + made);
    BUDGET.set(Budget { seen, made, touched });
    if touched > TOUCHED { Err(ExecutionError::function_error("", TOO_LONG)) } else { Ok(()) }
}

const MISFIT: &str = "the types do not fit: an operator or a function got what it has no meaning for";
const TOO_MUCH: &str = "the expressions of this object see more than 32 MiB: narrow down what is related";
const TOO_LARGE: &str = "the expressions of this object make more than 32 MiB";
const TOO_LONG: &str = "the expressions of this object take too long";

/// All functions. There are about two hundred, so they are registered once.
static FUNCTIONS: LazyLock<Context<'static>> = LazyLock::new(|| {
    let mut context = Context::default().with_all();
    add(&mut context, TICK, |_| tick().map(|()| Value::Bool(true)));
    add(&mut context, CHARGED, |call| {
        let value = argument(call, 0)?;
        make(size(&value)).map(|()| value)
    });
    add(&mut context, TIMES, |call| {
        let (times, value) = (argument(call, 0)?, argument(call, 1)?);
        make(size(&times).saturating_mul(size(&value)) / 64).map(|()| value)
    });
    add(&mut context, KEYS, |call| Ok(in_order(argument(call, 0)?)));
    add(&mut context, "lists.range", |call| {
        let Value::Int(end @ 0..) = argument(call, 0)? else {
            return Err(ExecutionError::function_error("lists.range", "expects a number that is not negative"));
        };
        make(end.unsigned_abs().saturating_mul(16))?;
        Ok(Value::List(Arc::new((0..end).map(Value::Int).collect())))
    });
    context
});

impl Evaluation<'static> {
    /// Nothing is seen yet, and nothing spent.
    pub(super) fn new() -> Self {
        BUDGET.set(Budget { seen: 0, made: 0, touched: 0 });
        Self { context: FUNCTIONS.new_inner_scope() }
    }
}

impl Evaluation<'_> {
    /// Lets expressions see a value.
    pub(super) fn show(&mut self, name: &Name, value: &Json) {
        let value = cel(value);
        see(size(&value));
        self.context.add_variable_from_value(name.variable(), value);
    }

    /// As it is, for something that sees more: an item of a `forEach`, or itself. The budget is the same.
    pub(super) fn inner(&self) -> Evaluation<'_> {
        Evaluation { context: self.context.new_inner_scope() }
    }

    /// The value of an expression, as JSON.
    pub(super) fn value(&self, expression: &Expression) -> Result<Json, Unknown> {
        let evaluated = catch_unwind(AssertUnwindSafe(|| self.context.resolve(&expression.tree)));
        match evaluated {
            Err(_panicked) => Err(Unknown::Failed("the expression cannot be evaluated".to_owned())),
            Ok(Ok(value)) => {
                make(size(&value)).map_err(|error| unknown(&error))?;
                json(&value).map_err(Unknown::Failed)
            }
            Ok(Err(error)) => Err(unknown(&error)),
        }
    }
}

type Function = Box<dyn Fn(&mut FunctionContext<'_, '_>) -> Result<Value, ExecutionError> + Send + Sync>;

fn add(
    context: &mut Context<'_>,
    name: &str,
    function: impl Fn(&mut FunctionContext<'_, '_>) -> Result<Value, ExecutionError> + Send + Sync + 'static,
) {
    let function: Function = Box::new(function);
    context.add_function(name, function);
}

fn argument(call: &FunctionContext<'_, '_>, number: usize) -> Result<Value, ExecutionError> {
    let missing = || ExecutionError::invalid_argument_count(number + 1, call.args.len());
    Value::resolve(call.args.get(number).ok_or_else(missing)?, call.ptx)
}

/// Says it without the values: they may be those of a Secret.
fn unknown(error: &ExecutionError) -> Unknown {
    match error {
        ExecutionError::NoSuchKey(key) => Unknown::Missing(format!("there is no `{key}`")),
        ExecutionError::IndexOutOfBounds(_) => Unknown::Missing("the list is shorter".to_owned()),
        ExecutionError::UndeclaredReference(name) => Unknown::Missing(format!("there is no `{name}`")),
        other => Unknown::Failed(match other {
            ExecutionError::FunctionError { function, .. } if !function.is_empty() => {
                format!("the function {function} refuses what it got")
            }
            ExecutionError::FunctionError { message, .. } => message.clone(),
            ExecutionError::UnsupportedBinaryOperator(name, left, right) => {
                format!("cannot {name} {} and {}", left.type_of(), right.type_of())
            }
            ExecutionError::UnsupportedUnaryOperator(name, value) => format!("cannot {name} {}", value.type_of()),
            ExecutionError::ValuesNotComparable(left, right) => {
                format!("cannot compare {} with {}", left.type_of(), right.type_of())
            }
            ExecutionError::DivisionByZero(_) | ExecutionError::RemainderByZero(_) => "division by zero".to_owned(),
            ExecutionError::Overflow(..) => "a number is too large".to_owned(),
            ExecutionError::UnexpectedType { got, want } => format!("expects {want}, got {got}"),
            ExecutionError::InvalidArgumentCount { expected, actual } => {
                format!("a function expects {expected} arguments and got {actual}")
            }
            _ => MISFIT.to_owned(),
        }),
    }
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// All integers become `int`, whatever their sign: `uint` and `int` do not add up.
fn cel(value: &Json) -> Value {
    match value {
        Json::Null => Value::Null,
        Json::Bool(value) => Value::Bool(*value),
        Json::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(number), _) => Value::Int(number),
            (None, Some(number)) => Value::UInt(number),
            (None, None) => Value::Float(number.as_f64().unwrap_or(f64::NAN)),
        },
        Json::String(text) => Value::String(Arc::new(text.clone())),
        Json::Array(items) => Value::List(Arc::new(items.iter().map(cel).collect())),
        Json::Object(fields) => {
            let map: HashMap<Key, Value> =
                fields.iter().map(|(key, value)| (Key::String(Arc::new(key.clone())), cel(value))).collect();
            Value::Map(Map { map: Arc::new(map) })
        }
    }
}

/// A value as it stands in an object. Whole numbers stay whole.
fn json(value: &Value) -> Result<Json, String> {
    Ok(match value {
        Value::Null => Json::Null,
        Value::Bool(value) => Json::Bool(*value),
        Value::Int(number) => Json::Number((*number).into()),
        Value::UInt(number) => Json::Number((*number).into()),
        Value::Float(number) => Number::from_f64(*number).map(Json::Number).ok_or("is no finite number")?,
        Value::String(text) => Json::String(text.as_str().to_owned()),
        Value::List(items) => Json::Array(items.iter().map(json).collect::<Result<_, _>>()?),
        Value::Map(map) => {
            let mut fields = serde_json::Map::new();
            for (key, value) in map.map.iter() {
                let Key::String(key) = key else { return Err("a mapping has a key that is no text".to_owned()) };
                fields.insert(key.as_str().to_owned(), json(value)?);
            }
            // Without the feature that keeps an order, the keys of an object are sorted.
            Json::Object(fields)
        }
        other => return Err(format!("{} is nothing that an object can hold", other.type_of())),
    })
}

/// The keys of a mapping, sorted; anything else as it is.
fn in_order(value: Value) -> Value {
    let Value::Map(map) = &value else { return value };
    let mut keys: Vec<&Key> = map.map.keys().collect();
    keys.sort();
    Value::List(Arc::new(keys.into_iter().map(|key| Value::from(key.clone())).collect()))
}

/// About how many bytes it takes.
fn size(value: &Value) -> u64 {
    match value {
        Value::List(items) => items.iter().map(size).fold(16, u64::saturating_add),
        Value::Map(map) => map.map.values().map(|value| 48 + size(value)).fold(16, u64::saturating_add),
        Value::String(text) => 16 + text.len() as u64,
        Value::Bytes(bytes) => 16 + bytes.len() as u64,
        _ => 16,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn seeing(parent: &Json) -> Evaluation<'static> {
        let mut evaluation = Evaluation::new();
        evaluation.show(&Name::Parent, parent);
        evaluation
    }

    fn value(text: &str, parent: &Json) -> Result<Json, Unknown> {
        let expression = Expression::compile(text).unwrap_or_else(|wrong| panic!("{text}: {wrong}"));
        seeing(parent).value(&expression)
    }

    #[test]
    fn values_keep_their_types() {
        let parent = json!({"n": 3, "big": -7, "half": 0.5, "yes": true, "no": null, "s": "x",
            "list": [1, "a", null], "map": {"b": {"c": []}, "a": 1}});
        for field in ["n", "big", "half", "yes", "no", "s", "list", "map"] {
            assert_eq!(value(&format!("parent.{field}"), &parent), Ok(parent[field].clone()), "{field}");
        }
        for (text, expected) in [
            ("parent.n + 1", json!(4)),
            ("parent.n > 2 ? 'many' : 'few'", json!("many")),
            ("'a-' + parent.s", json!("a-x")),
            ("has(parent.absent) ? 1 : 2", json!(2)),
            ("[parent.n, parent.n * 2]", json!([3, 6])),
            ("{'k': parent.s}", json!({"k": "x"})),
            ("size(parent.list)", json!(3)),
            ("parent.list.filter(i, i != null).map(i, string(i))", json!(["1", "a"])),
            ("parent.map.map(k, k)", json!(["a", "b"])),
            ("parent.s.upperAscii()", json!("X")),
            ("['a', 'b'].join('-')", json!("a-b")),
            ("'a.b'.replace('.', '-')", json!("a-b")),
            ("math.greatest(parent.n, 5)", json!(5)),
            ("lists.range(3)", json!([0, 1, 2])),
            ("parent.list.exists(i, i == 'a')", json!(true)),
            ("quantity('1Gi').isGreaterThan(quantity('1Mi'))", json!(true)),
        ] {
            assert_eq!(value(text, &parent), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_is_not_there_may_come_and_what_fails_says_why_without_the_values() {
        let parent = json!({"secret": "geheim", "n": 1, "list": []});
        for (text, expected) in [
            ("parent.absent", Unknown::Missing("there is no `absent`".to_owned())),
            ("parent.list[0]", Unknown::Missing("the list is shorter".to_owned())),
            ("parent.n + parent.secret", Unknown::Failed(MISFIT.to_owned())),
            ("parent.n / 0", Unknown::Failed("division by zero".to_owned())),
        ] {
            assert_eq!(value(text, &parent), Err(expected), "{text}");
        }
        for text in ["parent.secret < 3", "parent.secret.foo", "int(parent.secret)", "parent.secret + 1"] {
            let Err(Unknown::Failed(why) | Unknown::Missing(why)) = value(text, &parent) else { panic!("{text}") };
            assert!(!why.contains("geheim"), "{text}: {why}");
        }
    }

    #[test]
    fn what_is_wrong_with_an_expression_is_known_before_it_is_evaluated() {
        for (text, expected) in [
            ("", "an empty expression"),
            ("parnt.spec", "unknown name `parnt`"),
            ("parent.list.map(i, j)", "unknown name `j`"),
            ("children", "write children.<id>"),
            ("children['a']", "write children.<id>"),
            ("lenght(parent.s)", "unknown function `lenght`"),
            ("parent.s.upper()", "unknown function `upper`"),
            ("mth.ceil(1.5)", "unknown"),
            ("Thing{a: 1}", "not supported"),
            ("has(children.a)", "is always true"),
            ("1 +", "column"),
        ] {
            let wrong = Expression::compile(text).map(|_| ()).unwrap_err();
            assert!(wrong.contains(expected), "{text}: {wrong}");
        }
        assert!(Expression::compile(&format!("'{}'", "x".repeat(LONGEST))).unwrap_err().contains("bytes"));
        assert!(Expression::compile(&"(".repeat(1000)).is_err());
    }

    #[test]
    fn what_it_refers_to_is_known() {
        let text = "children.ns.metadata.name + related.base[0].data[parent.key] + each.x + string(index)";
        let expression = Expression::compile(text).unwrap();
        let expected =
            [Name::Parent, Name::Each, Name::Index, Name::Child("ns".to_owned()), Name::Related("base".to_owned())];
        assert_eq!(expression.refers().iter().cloned().collect::<Vec<_>>(), expected);
        let hidden = Expression::compile("parent.list.map(children, children.id)").unwrap();
        assert_eq!(hidden.refers().len(), 1, "a variable of a macro hides the name");
    }

    #[test]
    fn no_expression_makes_or_takes_more_than_it_may() {
        let wide = json!({"list": vec!["x"; 500], "big": "x".repeat(1 << 20)});
        let doubled = (0..40).fold("parent.big".to_owned(), |text, _| format!("[{text}].map(a, a + a)[0]"));
        for text in [
            "parent.list.map(a, parent.list.map(b, parent.list.map(c, parent.list.map(d, 1))))",
            "parent.list.all(a, parent.list.all(b, parent.list.all(c, parent.list.all(d, true))))",
            "parent.list.exists(a, parent.list.exists(b, parent.list.exists(c, parent.list.exists(d, false))))",
            "parent.list.map(a, parent.big)",
            "parent.list.map(a, {a: parent.big})",
            "parent.big.replace('x', parent.big)",
            "parent.list.join(parent.big)",
            "lists.range(9999999999)",
            &doubled,
        ] {
            let Ok(expression) = Expression::compile(text) else { continue };
            let outcome = seeing(&wide).value(&expression);
            assert!(matches!(&outcome, Err(Unknown::Failed(_))), "{text}");
        }
        assert!(value("parent.list.map(a, a + 'y')", &wide).is_ok());
    }

    #[test]
    fn no_expression_sees_more_than_it_may() {
        let large = json!({"big": "x".repeat(12 << 20)});
        let mut seeing = seeing(&large);
        let cheap = Expression::compile("1").unwrap();
        seeing.show(&Name::Related("some".to_owned()), &json!([large]));
        assert_eq!(seeing.value(&cheap), Ok(json!(1)));
        seeing.show(&Name::Related("more".to_owned()), &json!([large]));
        assert_eq!(seeing.value(&cheap), Err(Unknown::Failed(TOO_MUCH.to_owned())));
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in ".{0,60}") {
            if let Ok(expression) = Expression::compile(&text) {
                let _ = seeing(&json!({})).value(&expression);
            }
        }
    }
}
