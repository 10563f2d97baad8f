//! What the library is asked for: Kubernetes' own functions, of quantities, addresses, versions, times. Pure.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::LazyLock,
};

use kube_cel::{
    KubeCelExt,
    cel::{
        Context, ExecutionError, Value as Foreign,
        common::ast::{CallExpr, Expr, IdedExpr},
    },
};

use super::{
    run::{Halt, types},
    value::Value,
};

/// All functions. There are about two hundred, so they are registered once.
static FUNCTIONS: LazyLock<Context<'static>> = LazyLock::new(|| Context::default().with_all());

fn calling(function: &str, target: Option<IdedExpr>, args: Vec<IdedExpr>) -> IdedExpr {
    let target = target.map(Box::new);
    IdedExpr { id: 0, expr: Expr::Call(CallExpr { func_name: function.to_owned(), target, args }) }
}

/// Whether the library has a function of that name: it says so of one that gets no arguments.
pub(super) fn is_function(name: &str) -> bool {
    let call = calling(name, None, Vec::new());
    let outcome = catch_unwind(AssertUnwindSafe(|| FUNCTIONS.resolve(&call)));
    !matches!(outcome, Ok(Err(ExecutionError::UndeclaredReference(unknown))) if unknown.as_str() == name)
}

/// Calls a function, or an operator, of the library. Its error may quote what it got, so only types are told.
pub(super) fn call(function: &str, is_method: bool, arguments: &[Value]) -> Result<Value, Halt> {
    let mut context = FUNCTIONS.new_inner_scope();
    let mut names = Vec::new();
    for (number, argument) in arguments.iter().enumerate() {
        let name = format!("@{number}");
        names.push(IdedExpr { id: 0, expr: Expr::Ident(name.clone()) });
        context.add_variable_from_value(name, argument.to_foreign());
    }
    let target = (is_method && !names.is_empty()).then(|| names.remove(0));
    let call = calling(function, target, names);
    // It is known to panic on what it does not expect.
    let outcome: Result<Result<Foreign, _>, _> = catch_unwind(AssertUnwindSafe(|| context.resolve(&call)));
    match outcome {
        Ok(Ok(value)) => Ok(Value::from_foreign(value)),
        Ok(Err(_)) | Err(_) => Err(refused(function, arguments)),
    }
}

/// That a function has no value for what it got.
pub(super) fn refused(function: &str, arguments: &[Value]) -> Halt {
    Halt::Failed(format!("{function} has no value for ({})", types(arguments)))
}
