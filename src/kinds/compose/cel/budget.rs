//! What the expressions of one object may cost. Pure.
//!
//! It is counted and not timed, so that the same objects give the same result on every replica and on every day.
//! What may be spent grows with what is seen, so the time that an object takes is linear in what it and its children hold.

use std::{cell::Cell, rc::Rc};

/// What the expressions of an object may see, in bytes: the object, its children, and what is related.
const SEEN: u64 = 32 << 20;
/// What one evaluation of an object may make, in bytes, and so about what it may take of memory.
const MADE: u64 = 32 << 20;
/// What may be spent whatever is seen. One is about the work of looking at a byte: it is some 100 ms.
const GIVEN: u64 = 128 << 20;
/// What may be spent besides for each byte that is seen.
const FOR_A_BYTE: u64 = 16;
/// What may be spent in a brief evaluation, which holds up others: some two milliseconds.
const BRIEF: u64 = 2 << 20;

const TOO_MUCH: &str = "the expressions of this object see more than 32 MiB: narrow down what is related";
const TOO_LARGE: &str = "the expressions of this object make more than 32 MiB";
const TOO_LONG: &str = "the expressions of this object take too long";

/// The budget is spent, and on what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::kinds::compose) struct Spent(pub(super) &'static str);

/// The budget of an object. Clones spend from the same one.
#[derive(Clone, Debug, Default)]
pub(super) struct Budget(Rc<Account>);

#[derive(Debug, Default)]
struct Account {
    brief: bool,
    seen: Cell<u64>,
    shown: Cell<u64>,
    made: Cell<u64>,
    spent: Cell<u64>,
    over: Cell<Option<&'static str>>,
}

impl Budget {
    pub(super) fn new(brief: bool) -> Self {
        Self(Rc::new(Account { brief, ..Account::default() }))
    }

    /// Whether more was asked for than there is.
    pub(super) fn is_over(&self) -> bool {
        self.0.over.get().is_some()
    }

    #[cfg(test)]
    pub(super) fn spent(&self) -> u64 {
        self.0.spent.get()
    }

    /// Counts the bytes that composing looks at.
    pub(super) fn see(&self, bytes: u64) -> Result<(), Spent> {
        self.0.seen.set(self.0.seen.get().saturating_add(bytes));
        // To read it is work as well.
        self.spend(bytes)
    }

    /// Counts what expressions are shown.
    pub(super) fn show(&self, bytes: u64) -> Result<(), Spent> {
        self.0.shown.set(self.0.shown.get().saturating_add(bytes));
        if self.0.shown.get() > SEEN {
            return self.over(TOO_MUCH);
        }
        self.see(bytes)
    }

    /// Pays for a value of so many bytes.
    pub(super) fn make(&self, bytes: u64) -> Result<(), Spent> {
        self.0.made.set(self.0.made.get().saturating_add(bytes));
        if self.0.made.get() > MADE {
            return self.over(TOO_LARGE);
        }
        self.spend(bytes)
    }

    /// Pays for so much work.
    pub(super) fn spend(&self, work: u64) -> Result<(), Spent> {
        self.0.spent.set(self.0.spent.get().saturating_add(work));
        let seen = self.0.seen.get().saturating_mul(FOR_A_BYTE);
        let most = if self.0.brief { BRIEF } else { GIVEN.saturating_add(seen) };
        if self.is_over() || self.0.spent.get() > most { self.over(TOO_LONG) } else { Ok(()) }
    }

    /// What it was the first time, it is from then on.
    fn over(&self, why: &'static str) -> Result<(), Spent> {
        let why = self.0.over.get().unwrap_or(why);
        self.0.over.set(Some(why));
        Err(Spent(why))
    }
}
