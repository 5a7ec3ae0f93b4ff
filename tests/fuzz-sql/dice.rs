//! Chance, from a seed alone: the same seed draws the same, on any machine and in any order of runs.

/// Draws from one seed.
pub(crate) struct Dice(fastrand::Rng);

impl Dice {
    /// The draws of this seed for this purpose; purposes do not disturb one another.
    pub(crate) fn new(seed: u64, purpose: &str) -> Dice {
        let salt =
            purpose.bytes().fold(seed, |salt, byte| salt.wrapping_mul(0x100_0000_01B3) ^ u64::from(byte));
        Dice(fastrand::Rng::with_seed(salt))
    }

    /// A number from `low` up to and including `high`.
    pub(crate) fn within(&mut self, low: u32, high: u32) -> u32 {
        self.0.u32(low..=high)
    }

    /// True so many times in a hundred.
    pub(crate) fn percent(&mut self, chance: u32) -> bool {
        self.0.u32(0..100) < chance
    }

    /// One of them.
    pub(crate) fn pick<T: Clone>(&mut self, of: &[T]) -> T {
        of[self.0.usize(0..of.len())].clone()
    }

    /// One of them by weight.
    pub(crate) fn weighed<T: Clone>(&mut self, of: &[(u32, T)]) -> T {
        let mut left = self.0.u32(0..of.iter().map(|(weight, _)| weight).sum());
        for (weight, value) in of {
            if left < *weight {
                return value.clone();
            }
            left -= weight;
        }
        of[0].1.clone()
    }

    /// From 0 up to, but not including, 1.
    pub(crate) fn share(&mut self) -> f64 {
        self.0.f64()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_draws_the_same_every_time_and_purposes_draw_their_own() {
        let draw = |seed, purpose| {
            let mut dice = Dice::new(seed, purpose);
            (0..50).map(|_| dice.within(0, 1_000_000)).collect::<Vec<_>>()
        };
        assert_eq!(draw(7, "plan"), draw(7, "plan"));
        assert_ne!(draw(7, "plan"), draw(8, "plan"));
        assert_ne!(draw(7, "plan"), draw(7, "moments"));
    }

    #[test]
    fn a_weight_of_zero_is_never_drawn() {
        let mut dice = Dice::new(1, "weights");
        assert!((0..1000).all(|_| dice.weighed(&[(0, 'a'), (3, 'b'), (0, 'c')]) == 'b'));
    }
}
