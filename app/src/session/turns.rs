//! One at a time changes what is saved of a machine; the others wait for their turn, in the order in which they came.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How often one who waits is asked whether to go on waiting.
const LOOK: Duration = Duration::from_millis(50);

/// Whose turn it is.
#[derive(Default)]
pub(super) struct Turns {
    queue: Mutex<Queue>,
    changed: Condvar,
}

#[derive(Default)]
struct Queue {
    taken: bool,
    next: u64,
    waiting: VecDeque<u64>,
}

/// A turn; dropping it ends it.
pub(super) struct Turn<'a>(&'a Turns);

impl Turns {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the turn if nobody has it or waits for it.
    pub fn take_if_free(&self) -> Option<Turn<'_>> {
        let mut queue = self.lock();
        if queue.taken || !queue.waiting.is_empty() {
            return None;
        }
        queue.taken = true;
        Some(Turn(self))
    }

    /// Waits for the turn. `go_on` is asked again and again while somebody else has it; `None` once it says no.
    pub fn take(&self, mut go_on: impl FnMut() -> bool) -> Option<Turn<'_>> {
        let mut queue = self.lock();
        let own = queue.next;
        queue.next += 1;
        queue.waiting.push_back(own);
        while queue.taken || queue.waiting.front() != Some(&own) {
            // Whoever is asked may take its time, and others come and go meanwhile.
            drop(queue);
            let goes_on = go_on();
            queue = self.lock();
            if !goes_on {
                queue.waiting.retain(|number| *number != own);
                self.changed.notify_all();
                return None;
            }
            if queue.taken || queue.waiting.front() != Some(&own) {
                queue = self.changed.wait_timeout(queue, LOOK).unwrap_or_else(PoisonError::into_inner).0;
            }
        }
        queue.waiting.pop_front();
        queue.taken = true;
        Some(Turn(self))
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.lock().taken = false;
        self.0.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;
    use std::thread;

    #[test]
    fn who_comes_while_another_has_the_turn_waits_for_it_and_says_so() {
        let turns = Turns::default();
        let (waits, waited) = channel();
        let (got, gotten) = channel();
        thread::scope(|scope| {
            let first = turns.take(|| true).unwrap();
            scope.spawn(|| {
                let turn = turns.take(|| waits.send(()).is_ok());
                got.send(turn.is_some()).unwrap();
            });
            waited.recv().unwrap();
            assert!(turns.take_if_free().is_none() && gotten.try_recv().is_err());
            drop(first);
            assert!(gotten.recv().unwrap());
        });
        assert!(turns.take_if_free().is_some());
    }

    #[test]
    fn one_who_no_longer_wants_it_lets_the_next_one_go() {
        let turns = Turns::default();
        let first = turns.take_if_free().unwrap();
        assert!(turns.take(|| false).is_none());
        drop(first);
        assert!(turns.take(|| false).is_some());
    }

    #[test]
    fn the_turns_are_taken_in_the_order_in_which_they_were_asked_for() {
        let turns = Turns::default();
        let (done, order) = channel();
        thread::scope(|scope| {
            let mut first = turns.take_if_free();
            for number in 0..5 {
                let (waits, waited) = channel();
                let (turns, done) = (&turns, done.clone());
                scope.spawn(move || {
                    let asked = || {
                        // Heard the first time only.
                        let _ = waits.send(());
                        true
                    };
                    let _turn = turns.take(asked).unwrap();
                    done.send(number).unwrap();
                });
                waited.recv().unwrap();
            }
            first.take();
            let order: Vec<i32> = order.iter().take(5).collect();
            assert_eq!(order, [0, 1, 2, 3, 4]);
        });
    }
}
