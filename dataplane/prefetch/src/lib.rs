//! One function: brings memory on its way into the cache. It is a crate of its own because the instruction needs unsafe
//! code, which the rooms that use it must not have.

/// Bytes that one prefetch instruction brings.
const LINE: usize = 64;

/// Brings an item of a slice on its way into the second-level cache, as far as the processor likes. Changes nothing that a program could
/// see; without effect where there is no such instruction.
///
/// An index outside the slice is allowed. It costs no check here, and at most the look for a page that is not there.
#[inline(always)]
pub fn prefetch<T>(items: &[T], index: usize) {
    let item = items.as_ptr().wrapping_add(index).cast::<i8>();
    let mut offset = 0;
    while offset < size_of::<T>() {
        line(item.wrapping_add(offset));
        offset += LINE;
    }
}

#[cfg(all(target_arch = "x86_64", not(miri)))]
#[inline(always)]
fn line(address: *const i8) {
    use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
    // SAFETY: there is no safe function for this instruction, which can be had nowhere else. It is a hint: it reads no
    // value, raises no fault whatever the address is, and every x86-64 processor has it.
    unsafe { _mm_prefetch::<_MM_HINT_T1>(address) }
}

#[cfg(not(all(target_arch = "x86_64", not(miri))))]
#[inline(always)]
fn line(_address: *const i8) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_changed_and_no_index_faults() {
        let items = [[7u8; 128]; 4];
        for index in [0, 3, 4, 1 << 20, usize::MAX / 2, usize::MAX] {
            prefetch(&items, index);
        }
        prefetch::<u64>(&[], 0);
        assert_eq!(items, [[7; 128]; 4]);
    }
}
