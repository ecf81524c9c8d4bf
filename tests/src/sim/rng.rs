//! The simulator's only source of chance: xoshiro256**, seeded by SplitMix64.
//!
//! Always: one seed, one sequence, on every machine. Never: the system's randomness.

/// A deterministic generator.
#[derive(Clone, Debug)]
pub struct Rng([u64; 4]);

/// One step of SplitMix64: also the simulator's mixing function.
#[must_use]
pub const fn mix(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

impl Rng {
    /// The generator of this seed.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        let a = mix(seed);
        let b = mix(a);
        let c = mix(b);
        Self([a, b, c, mix(c)])
    }

    /// Any 64 bits.
    pub const fn next(&mut self) -> u64 {
        let s = &mut self.0;
        let result = s[1].wrapping_mul(5).rotate_left(7).wrapping_mul(9);
        let t = s[1] << 17;
        s[2] ^= s[0];
        s[3] ^= s[1];
        s[1] ^= s[2];
        s[0] ^= s[3];
        s[2] ^= t;
        s[3] = s[3].rotate_left(45);
        result
    }

    /// A number below `n`; 0 if `n` is 0.
    pub const fn below(&mut self, n: u64) -> u64 {
        if n == 0 { 0 } else { self.next() % n }
    }

    /// A number from `span.0` to `span.1`, both included.
    pub const fn within(&mut self, span: (u64, u64)) -> u64 {
        span.0 + self.below(span.1.saturating_sub(span.0) + 1)
    }

    /// True in so many of a thousand cases.
    pub const fn per_mille(&mut self, chance: u64) -> bool {
        chance > 0 && self.below(1000) < chance
    }

    /// One of two, evenly.
    pub const fn coin(&mut self) -> bool {
        self.next() & 1 == 1
    }

    /// One of these.
    pub fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len() as u64) as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_seed_is_one_sequence() {
        let draw = |seed| (0..4).map(|_| 0).scan(Rng::new(seed), |rng, _: u64| Some(rng.next())).collect::<Vec<_>>();
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
        let mut rng = Rng::new(1);
        assert!((0..1000).all(|_| (5..=9).contains(&rng.within((5, 9)))));
        let half = (0..10_000).filter(|_| rng.per_mille(500)).count();
        assert!((4_800..5_200).contains(&half), "{half} of 10,000");
    }
}
