//! Smooth weighted round robin: weights 3 and 1 give A A B A, not A A A B.
//!
//! The order of one round is computed when the group is built, by the algorithm of nginx; a request takes the next
//! place by one atomic addition. A backend that is not eligible is passed over and the counter with it, so that the
//! backends behind it in the order get no more than their share.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use pingora::protocols::l4::socket::SocketAddr;
use pingora_load_balancing::Backend;
use pingora_load_balancing::selection::{BackendIter, BackendSelection};

/// The order in which backends take turns.
pub struct SmoothRoundRobin {
    backends: Vec<Backend>,
    /// Invariant: every element is an index into `backends`.
    round: Vec<u16>,
    next: AtomicUsize,
}

/// Walks on from the shared place in the round.
pub struct Turns(Arc<SmoothRoundRobin>);

impl BackendSelection for SmoothRoundRobin {
    type Iter = Turns;
    /// The backends in the order of the file, which decides between equal weights.
    type Config = Vec<SocketAddr>;

    fn build_with_config(backends: &BTreeSet<Backend>, order: &Self::Config) -> Self {
        let place = |backend: &Backend| order.iter().position(|address| backend.addr == *address);
        let mut backends: Vec<_> = backends.iter().cloned().collect();
        backends.sort_by_key(place);
        let weights: Vec<usize> = backends.iter().map(|backend| backend.weight).collect();
        SmoothRoundRobin { round: round(&weights), backends, next: AtomicUsize::new(0) }
    }

    fn build(backends: &BTreeSet<Backend>) -> Self {
        Self::build_with_config(backends, &Vec::new())
    }

    fn iter(self: &Arc<Self>, _key: &[u8]) -> Turns {
        Turns(self.clone())
    }
}

impl BackendIter for Turns {
    fn next(&mut self) -> Option<&Backend> {
        let turn = self.0.next.fetch_add(1, Ordering::Relaxed);
        let place = turn.checked_rem(self.0.round.len())?;
        self.0.round.get(place).and_then(|index| self.0.backends.get(usize::from(*index)))
    }
}

/// One round: each backend gains its weight, the richest is next and pays the sum of all.
pub fn round(weights: &[usize]) -> Vec<u16> {
    let divisor = weights.iter().copied().fold(0, gcd).max(1);
    let weights: Vec<i64> = weights.iter().map(|weight| i64::try_from(weight / divisor).unwrap_or(1)).collect();
    let total: i64 = weights.iter().sum();
    let mut credit = vec![0; weights.len()];
    let mut order = Vec::new();
    for _ in 0..total {
        for (credit, weight) in credit.iter_mut().zip(&weights) {
            *credit += weight;
        }
        // The first of the richest, so that equal weights go in the order of the file.
        let richest = credit.iter().enumerate().rev().max_by_key(|(_, credit)| **credit).map(|(index, _)| index);
        let Some(index) = richest else { break };
        if let Some(credit) = credit.get_mut(index) {
            *credit -= total;
        }
        order.extend(u16::try_from(index));
    }
    order
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}
