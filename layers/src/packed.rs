//! Arrays of integers in as many bits as they need.

/// An immutable array of integers, each stored as its distance from the smallest one, without the low bits that
/// all distances have zero, in as many bits as the largest needs. (LSNs are multiples of 8 and near each other.)
#[derive(Debug)]
pub(crate) struct Packed {
    min: u64,
    shift: u32,
    width: u32,
    len: usize,
    words: Box<[u64]>,
}

impl Packed {
    pub(crate) fn new(values: &[u64]) -> Packed {
        let min = values.iter().copied().min().unwrap_or(0);
        let used = values.iter().fold(0, |used, value| used | (value - min));
        let shift = if used == 0 { 0 } else { used.trailing_zeros() };
        let width = 64 - (used >> shift).leading_zeros();
        let bits = values.len().saturating_mul(width as usize);
        let mut words = vec![0u64; bits.div_ceil(64)];
        for (index, value) in values.iter().enumerate() {
            let (word, offset) = place(index, width);
            let part = (value - min) >> shift;
            if let Some(low) = words.get_mut(word) {
                *low |= part << offset;
            }
            if offset + width > 64
                && let Some(high) = words.get_mut(word + 1)
            {
                *high |= part >> (64 - offset);
            }
        }
        Packed { min, shift, width, len: values.len(), words: words.into() }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The value at `index`, which the caller keeps below [`Packed::len`].
    pub(crate) fn get(&self, index: usize) -> u64 {
        debug_assert!(index < self.len);
        if self.width == 0 {
            return self.min;
        }
        let (word, offset) = place(index, self.width);
        let mut part = self.words.get(word).copied().unwrap_or(0) >> offset;
        if offset + self.width > 64 {
            part |= self.words.get(word + 1).copied().unwrap_or(0) << (64 - offset);
        }
        self.min + ((part & (u64::MAX >> (64 - self.width))) << self.shift)
    }

    /// Bytes on the heap.
    pub(crate) fn heap_bytes(&self) -> usize {
        size_of_val(&*self.words)
    }
}

fn place(index: usize, width: u32) -> (usize, u32) {
    let bit = index * width as usize;
    (bit / 64, (bit % 64) as u32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn values_come_back(
            base in any::<u64>(),
            width in 0u32..=64,
            shift in 0u32..8,
            parts in proptest::collection::vec(any::<u64>(), 0..300),
        ) {
            let mask = if width == 0 { 0 } else { u64::MAX >> (64 - width) };
            let values: Vec<u64> =
                parts.into_iter().map(|part| base.saturating_add((part & mask) >> shift << shift)).collect();
            let packed = Packed::new(&values);
            prop_assert_eq!(packed.len(), values.len());
            for (index, value) in values.iter().enumerate() {
                prop_assert_eq!(packed.get(index), *value);
            }
        }
    }

    #[test]
    fn equal_values_take_no_space_and_aligned_ones_no_low_bits() {
        assert_eq!(Packed::new(&[7; 1000]).heap_bytes(), 0);
        let lsns: Vec<u64> = (0..1024).map(|n| 0x1_0000_0000 + n * 8).collect();
        assert_eq!(Packed::new(&lsns).heap_bytes(), 1024 * 10 / 8);
    }
}
