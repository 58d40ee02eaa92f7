//! Finds the prefixes of a text among many, each of which ends where a segment ends.
//!
//! The prefixes are sorted, so every prefix of a text is also a prefix of the last entry that is not after the text, or
//! is that entry. One binary search finds it, and from there each entry leads to its longest prefix. The cost grows
//! with the logarithm of the number of prefixes and with the number of those that enclose each other. It does not
//! depend on the length of the text.

use std::collections::BTreeMap;

/// Values for texts, and for all texts below a prefix.
#[derive(Clone, Debug)]
pub(super) struct Prefixes<T> {
    /// In the order of their texts.
    nodes: Box<[Node<T>]>,
    /// The last byte of a segment.
    separator: u8,
}

/// The values for a text, which is also a prefix of longer texts.
#[derive(Clone, Debug)]
pub(super) struct Entry<T> {
    /// The value for this text only.
    pub(super) exact: Option<T>,
    /// The value for this text and all texts below it.
    pub(super) below: Option<T>,
}

#[derive(Clone, Debug)]
struct Node<T> {
    text: Box<[u8]>,
    entry: Entry<T>,
    /// The node with a value for texts below it whose text is the longest proper prefix of this one.
    parent: Option<usize>,
}

/// The texts to which the values in question apply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sought<'a> {
    /// This text.
    Text(&'a [u8]),
    /// All texts below this prefix.
    Below(&'a [u8]),
}

// === impl Prefixes ===

impl<T> Prefixes<T> {
    #[expect(clippy::indexing_slicing, reason = "a parent is one of the nodes before")]
    pub(super) fn new(entries: BTreeMap<Box<[u8]>, Entry<T>>, separator: u8) -> Self {
        let mut nodes: Vec<Node<T>> = Vec::with_capacity(entries.len());
        for (text, entry) in entries {
            let encloses =
                |index: &usize| nodes[*index].entry.below.is_some() && text.starts_with(&nodes[*index].text);
            let latest = nodes.len().checked_sub(1);
            let parent = std::iter::successors(latest, |index| nodes[*index].parent).find(encloses);
            nodes.push(Node { text, entry, parent });
        }
        Self { nodes: nodes.into(), separator }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// Returns the values that apply to all that is sought.
    pub(super) fn find(&self, sought: Sought<'_>) -> impl Iterator<Item = &T> {
        let text = sought.text();
        let after = self.nodes.partition_point(|node| *node.text <= *text);
        let nearest = after.checked_sub(1).and_then(|index| self.nodes.get(index));
        let exact = nearest.filter(|node| sought == Sought::Text(&node.text));
        let enclosing = std::iter::successors(nearest, |node| self.nodes.get(node.parent?))
            .filter(|node| node.encloses(text, self.separator));
        exact
            .and_then(|node| node.entry.exact.as_ref())
            .into_iter()
            .chain(enclosing.filter_map(|node| node.entry.below.as_ref()))
    }
}

// === impl Entry ===

impl<T> Entry<T> {
    /// Converts the values.
    pub(super) fn map<U>(self, mut to: impl FnMut(T) -> U) -> Entry<U> {
        Entry { exact: self.exact.map(&mut to), below: self.below.map(to) }
    }
}

impl<T> Default for Entry<T> {
    fn default() -> Self {
        Self { exact: None, below: None }
    }
}

// === impl Node ===

impl<T> Node<T> {
    /// Returns whether `text` is this prefix, or continues after one of its segments.
    fn encloses(&self, text: &[u8], separator: u8) -> bool {
        let is_at_end = |rest: &[u8]| {
            rest.first().is_none_or(|next| *next == separator) || self.text.last() == Some(&separator)
        };
        text.strip_prefix(&*self.text).is_some_and(is_at_end)
    }
}

// === impl Sought ===

impl<'a> Sought<'a> {
    fn text(self) -> &'a [u8] {
        match self {
            Self::Text(text) | Self::Below(text) => text,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::{any, prop_assert_eq, proptest};

    type Texts = Vec<(String, bool)>;

    /// Returns prefixes whose values are the indices of `texts`. The flag of a text means that all below it is meant.
    fn prefixes(texts: &Texts) -> Prefixes<Vec<usize>> {
        let mut entries: BTreeMap<Box<[u8]>, Entry<Vec<usize>>> = BTreeMap::new();
        for (index, (text, below)) in texts.iter().enumerate() {
            let entry = entries.entry(text.as_bytes().into()).or_default();
            let place = if *below { &mut entry.below } else { &mut entry.exact };
            place.get_or_insert_default().push(index);
        }
        Prefixes::new(entries, b'/')
    }

    fn is_below(text: &str, prefix: &str) -> bool {
        text == prefix
            || text.starts_with(&format!("{prefix}/"))
            || (prefix.ends_with('/') && text.starts_with(prefix))
    }

    proptest! {
        /// `.` sorts before the separator and `a` after it.
        #[test]
        fn exactly_the_values_that_apply_are_found(
            texts in vec(("[./a]{0,6}", any::<bool>()), 0..40),
            sought in vec("[./a]{0,8}", 20),
        ) {
            let prefixes = prefixes(&texts);
            let found = |sought| {
                let mut found: Vec<usize> = prefixes.find(sought).flatten().copied().collect();
                found.sort_unstable();
                found
            };
            let all = |meant: &dyn Fn(&str, bool) -> bool| -> Vec<usize> {
                (0..texts.len()).filter(|index| meant(&texts[*index].0, texts[*index].1)).collect()
            };
            for text in &sought {
                let bytes = text.as_bytes();
                let at = all(&|own, below| if below { is_below(text, own) } else { text == own });
                prop_assert_eq!(found(Sought::Text(bytes)), at);
                prop_assert_eq!(found(Sought::Below(bytes)), all(&|own, below| below && is_below(text, own)));
            }
        }
    }
}
