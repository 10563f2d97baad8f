//! Names from outside as labels: of a length and in a number that are bounded, whatever others write.

use std::collections::BTreeSet;

/// What a name is counted as that is not told apart.
pub(super) const OTHERS: &str = "other";
/// Bytes of a name that comes from outside.
const LONGEST: usize = 64;

/// A name of a length that is bounded.
pub(super) fn cut(name: &str) -> String {
    name[..name.floor_char_boundary(LONGEST)].to_owned()
}

/// Names of which each has a series of its own: all of ours, and a few of those that others choose.
#[derive(Debug, Default)]
pub(super) struct Names {
    ours: BTreeSet<String>,
    theirs: BTreeSet<String>,
}

impl Names {
    /// A name that the configuration has, and that is bounded by it.
    pub(super) fn know(&mut self, name: &str) {
        self.ours.insert(name.to_owned());
    }

    /// The label for this name, with `most` names told apart that are not ours.
    pub(super) fn label(&mut self, name: &str, most: usize) -> String {
        if self.ours.contains(name) {
            return name.to_owned();
        }
        let name = cut(name);
        if !self.theirs.contains(&name) && self.theirs.len() >= most {
            return OTHERS.to_owned();
        }
        self.theirs.insert(name.clone());
        name
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ours_are_whole_and_of_others_a_few_are_told_apart() {
        let long = "é".repeat(100);
        let mut names = Names::default();
        names.know(&long);
        assert_eq!(names.label(&long, 2), long);
        assert_eq!(names.label(&format!("x{long}"), 2).len(), 63);
        assert_eq!(names.label("a", 2), "a");
        assert_eq!(
            (names.label("b", 2), names.label("a", 2), names.label(&long, 2)),
            (OTHERS.into(), "a".into(), long)
        );
    }
}
