//! The blocks that a lane has at hand: open ones, from which the common lease draws without looking for one.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::bitmap::{insert, remove};
use super::region::{Lane, NONE};

/// Most blocks at hand.
pub(super) const HAND: usize = 8;

/// Indices of open blocks of one lane, each once.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct Hand {
    /// [`NONE`] from `held` on.
    blocks: [u32; HAND],
    held: u32,
}

impl Hand {
    pub(super) const EMPTY: Self = Self { blocks: [NONE; HAND], held: 0 };

    /// Whether there is nothing to add: every place is taken, or by all of the lane's `open` blocks.
    #[inline(always)]
    pub(super) const fn is_whole(&self, open: u32) -> bool {
        self.held as usize == HAND || self.held == open
    }

    /// One of the blocks, each as likely as the other, by seven bits; [`NONE`] if there is none.
    #[inline(always)]
    pub(super) const fn draw(&self, random: u32) -> u32 {
        self.blocks[((random % 128 * self.held) / 128) as usize % HAND]
    }

    /// Adds an open block; where there is no place, it takes that of another, which `random` chooses.
    pub(super) fn take_up(&mut self, block: u32, random: usize) {
        if self.blocks.contains(&block) {
            return;
        }
        if (self.held as usize) < HAND {
            self.blocks[self.held as usize] = block;
            self.held += 1;
        } else {
            self.blocks[random % HAND] = block;
        }
    }

    /// Takes a block out, if it is there.
    pub(super) fn lay_down(&mut self, block: u32) {
        if let Some(at) = self.blocks.iter().position(|held| *held == block) {
            self.held -= 1;
            self.blocks[at] = self.blocks[self.held as usize];
            self.blocks[self.held as usize] = NONE;
        }
    }
}

impl Lane {
    /// Notes that the last free port of a block was taken.
    #[cold]
    pub(super) fn fill(&mut self, block: u32, number: u16) {
        remove(&mut self.open, number);
        insert(&mut self.full, number);
        self.full_blocks += 1;
        self.hand.lay_down(block);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_block_at_hand_is_drawn_as_often_as_the_others_and_none_that_was_laid_down() {
        let mut hand = Hand::EMPTY;
        assert_eq!(hand.draw(127), NONE);
        for block in [10, 11, 12, 13, 12, 10] {
            hand.take_up(block, 0);
        }
        hand.lay_down(11);
        hand.lay_down(99);
        assert!(hand.is_whole(3) && !hand.is_whole(4));
        let count = |block| (0..128).filter(|random| hand.draw(*random) == block).count();
        assert!([10, 12, 13].into_iter().all(|block| (42..=43).contains(&count(block))));
        assert_eq!(count(11) + count(NONE), 0);
    }

    #[test]
    fn a_full_hand_gives_one_place_to_the_newcomer() {
        let mut hand = Hand::EMPTY;
        (0..HAND as u32 + 1).for_each(|block| hand.take_up(block, 5));
        assert_eq!(hand.blocks, [0, 1, 2, 3, 4, 8, 6, 7]);
        assert!(hand.is_whole(1000));
    }
}
