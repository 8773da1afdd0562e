//! Vectors of which a change copies only the pages that it touches; the others are shared with the vector before.

use std::ops::Index;
use std::sync::Arc;

/// Slots of a page.
const PAGE: usize = 128;

/// Slots by number, some of them free. A clone shares all pages; [`Pages::set`] copies one.
#[derive(Clone, Debug)]
pub struct Pages<T> {
    /// Of a fixed length, so that a slot of a page is found without asking for its length.
    pages: Vec<Arc<[Option<T>; PAGE]>>,
    length: usize,
}

impl<T> Default for Pages<T> {
    fn default() -> Self {
        Self { pages: Vec::new(), length: 0 }
    }
}

impl<T> Pages<T> {
    /// What is in slot `at`; `None` where the slot is free or there is none.
    #[inline]
    #[must_use]
    pub fn get(&self, at: usize) -> Option<&T> {
        self.pages.get(at / PAGE)?[at % PAGE].as_ref()
    }

    /// How many slots there are, free ones too.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.length
    }

    /// Whether there are no slots.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// All slots in their order.
    pub fn iter(&self) -> impl Iterator<Item = Option<&T>> {
        self.pages.iter().flat_map(|page| page.iter()).take(self.length).map(Option::as_ref)
    }

    /// Whether nothing can differ: every page is shared with `other`. Costs one look at each page.
    #[must_use]
    pub fn is_shared_with(&self, other: &Self) -> bool {
        self.length == other.length && self.unshared(other).next().is_none()
    }

    /// Numbers of the slots in pages that are not shared with `older`, up to the longer one's length: what differs is among
    /// them. Costs one look at each page, and the slots of the changed ones.
    pub fn unshared<'p>(&'p self, older: &'p Self) -> impl Iterator<Item = usize> + 'p {
        let pages = self.pages.len().max(older.pages.len());
        let shared = |at: &usize| match (self.pages.get(*at), older.pages.get(*at)) {
            (Some(page), Some(before)) => Arc::ptr_eq(page, before),
            _ => false,
        };
        let length = self.length.max(older.length);
        let changed = (0..pages).filter(move |at| !shared(at));
        changed.flat_map(|at| at * PAGE..(at + 1) * PAGE).take_while(move |at| *at < length)
    }
}

impl<T: Clone + PartialEq> Pages<T> {
    /// Puts `value` into slot `at`, behind the last one at most. A page in which nothing changes stays shared.
    ///
    /// # Panics
    /// When `at` is larger than the length.
    pub fn set(&mut self, at: usize, value: Option<T>) {
        assert!(at <= self.length, "slots are made one after the other");
        if at / PAGE == self.pages.len() {
            self.pages.push(Arc::new(std::array::from_fn(|_| None)));
        }
        self.length = self.length.max(at + 1);
        let page = &mut self.pages[at / PAGE];
        if page[at % PAGE] != value {
            Arc::make_mut(page)[at % PAGE] = value;
        }
    }
}

impl<T> Index<usize> for Pages<T> {
    type Output = T;

    fn index(&self, at: usize) -> &T {
        self.get(at).expect("the slot is not free")
    }
}

impl<T: PartialEq> PartialEq for Pages<T> {
    fn eq(&self, other: &Self) -> bool {
        self.length == other.length && self.iter().eq(other.iter())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_copies_one_page_and_leaves_the_clone_as_it_was() {
        let mut pages = Pages::default();
        (0..3 * PAGE).for_each(|at| pages.set(at, Some(at)));
        let before = pages.clone();
        pages.set(PAGE + 1, None);
        pages.set(3 * PAGE, Some(7));
        let shared = |at: usize| Arc::ptr_eq(&pages.pages[at], &before.pages[at]);
        assert_eq!([0, 1, 2].map(shared), [true, false, true]);
        assert_eq!((before.get(PAGE + 1), pages.get(PAGE + 1)), (Some(&(PAGE + 1)), None));
        assert_eq!(
            (before.len(), pages.len(), pages[3 * PAGE], before.get(3 * PAGE)),
            (3 * PAGE, 3 * PAGE + 1, 7, None)
        );
        assert_ne!(before, pages);
        let unshared = || pages.unshared(&before).chain(before.unshared(&pages));
        assert!(
            unshared().eq([PAGE..2 * PAGE, 3 * PAGE..3 * PAGE + 1].into_iter().flatten().cycle().take(2 * (PAGE + 1)))
        );
        assert!(!pages.is_shared_with(&before) && pages.is_shared_with(&pages.clone()));
    }

    #[test]
    fn an_equal_value_copies_nothing() {
        let mut pages = Pages::default();
        pages.set(0, Some(5));
        let before = pages.clone();
        pages.set(0, Some(5));
        assert!(Arc::ptr_eq(&pages.pages[0], &before.pages[0]));
    }
}
