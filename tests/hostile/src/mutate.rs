//! Damage that is the same in every run: what bits, lengths and ends of a sample can be turned into.

/// Numbers that follow from a seed (Marsaglia's xorshift64*).
#[derive(Debug)]
pub struct Numbers(u64);

impl Numbers {
    /// The numbers of this seed.
    pub fn new(seed: u64) -> Numbers {
        Numbers(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// A number below `limit`; 0 if there is none.
    pub fn below(&mut self, limit: usize) -> usize {
        if limit == 0 { 0 } else { (self.next() % limit as u64) as usize }
    }
}

/// What fields are set to: the ends of every width, signs, and what arithmetic on lengths trips over.
fn extreme(numbers: &mut Numbers, length: usize) -> u64 {
    let length = length as u64;
    let choices = [
        0,
        1,
        2,
        0x7F,
        0x80,
        0xFF,
        0x7FFF,
        0x8000,
        0xFFFF,
        0x3FFF_FFFF,
        0x7FFF_FFFF,
        0x8000_0000,
        0xFFFF_FFFF,
        0x7FFF_FFFF_FFFF_FFFF,
        0x8000_0000_0000_0000,
        u64::MAX,
        u64::MAX - 7,
        8191,
        8192,
        8193,
        length,
        length.wrapping_sub(1),
        length.wrapping_add(1),
        length / 2,
    ];
    choices[numbers.below(choices.len())]
}

/// One to four kinds of damage to `sample`; `other` is where foreign bytes come from. At most `longest` bytes.
pub fn damaged(sample: &[u8], other: &[u8], numbers: &mut Numbers, longest: usize) -> Vec<u8> {
    let mut bytes = sample.to_vec();
    for _ in 0..=numbers.below(4) {
        damage(&mut bytes, other, numbers);
    }
    bytes.truncate(longest);
    bytes
}

fn damage(bytes: &mut Vec<u8>, other: &[u8], numbers: &mut Numbers) {
    let length = bytes.len();
    let at = numbers.below(length);
    match numbers.below(10) {
        0..=2 => {
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= 1 << numbers.below(8);
            }
        }
        3..=5 => {
            let width = 1 << numbers.below(4);
            // Fields are aligned more often than not.
            let at = if numbers.below(4) == 0 { at } else { at - at % width };
            let value = extreme(numbers, length);
            let (little, big) = (value.to_le_bytes(), value.to_be_bytes());
            let field = if numbers.below(4) == 0 { &big[8 - width..] } else { &little[..width] };
            if let Some(target) = bytes.get_mut(at..at + width) {
                target.copy_from_slice(field);
            }
        }
        6 => bytes.truncate(at),
        7 => {
            let count = numbers.below(64);
            let more: Vec<u8> = (0..count).map(|_| numbers.below(256) as u8).collect();
            bytes.splice(at..at, more);
        }
        8 => drop(bytes.drain(at..(at + numbers.below(64)).min(length))),
        _ => {
            let from = numbers.below(other.len());
            let foreign = other.get(from..).unwrap_or_default();
            let count = numbers.below(foreign.len().min(256));
            let end = (at + count).min(length);
            bytes.splice(at..end, foreign[..count].iter().copied());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_damages_in_the_same_way_and_every_kind_happens() {
        let sample: Vec<u8> = (0..200).collect();
        let run = |seed| {
            let mut numbers = Numbers::new(seed);
            (0..1000).map(|_| damaged(&sample, b"foreign bytes", &mut numbers, 250)).collect::<Vec<_>>()
        };
        assert_eq!(run(1), run(1));
        assert_ne!(run(1), run(2));
        let all = run(3);
        assert!(all.iter().any(|bytes| bytes.len() < 200) && all.iter().any(|bytes| bytes.len() > 200));
        assert!(all.iter().all(|bytes| bytes.len() <= 250));
        assert!(all.iter().any(|bytes| bytes.len() == 200 && *bytes != sample));
    }

    #[test]
    fn nothing_at_all_can_be_damaged_too() {
        let mut numbers = Numbers::new(1);
        for _ in 0..1000 {
            damaged(&[], &[], &mut numbers, 100);
        }
    }
}
