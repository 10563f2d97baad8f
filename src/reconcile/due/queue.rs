//! Which object is next: changes first, what may wait behind them. Pure: no clock, no request.

use std::{
    collections::{BTreeMap, HashMap},
    hash::Hash,
};

use crate::protocol::moment::Moment;

/// How urgent it is to look at an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lane {
    /// It changed, or what it depends on.
    Changed,
    /// It changed shortly before the term, or asked to be looked at by now.
    Soon,
    /// It has to be looked at some time: the sweep after a take-over, the resync.
    Sweep,
}

const LANES: [Lane; 3] = [Lane::Changed, Lane::Soon, Lane::Sweep];

/// One start of so many is of the object that has waited longest, so that changes without end do not keep the sweep from its own.
const FAIR: u32 = 8;

/// The order of what waits: by lane, and in a lane who came first.
type Ticket = (Lane, u64);

/// The objects that are due, each once, and those in hand.
#[derive(Debug)]
pub(super) struct Queue<R> {
    /// With the moment since when it does.
    waiting: BTreeMap<Ticket, (R, Moment)>,
    tickets: HashMap<R, Ticket>,
    /// The lane of those that became due again while they were in hand.
    running: HashMap<R, Option<Lane>>,
    issued: u64,
    overtaken: u32,
    /// Those that wait in the lane of the sweep.
    sweeping: usize,
}

impl<R> Default for Queue<R> {
    fn default() -> Self {
        Self {
            waiting: BTreeMap::new(),
            tickets: HashMap::new(),
            running: HashMap::new(),
            issued: 0,
            overtaken: 0,
            sweeping: 0,
        }
    }
}

impl<R: Clone + Eq + Hash> Queue<R> {
    /// Makes an object due. One that waits already moves if this lane is faster; one in hand will be due when it is done.
    pub(super) fn add(&mut self, lane: Lane, object: R, now: Moment) {
        if let Some(again) = self.running.get_mut(&object) {
            *again = Some(again.map_or(lane, |before| before.min(lane)));
            return;
        }
        let mut since = now;
        if let Some(before) = self.tickets.get(&object) {
            if before.0 <= lane {
                return;
            }
            since = self.waiting.remove(before).map_or(now, |(_, since)| since);
            self.sweeping -= usize::from(before.0 == Lane::Sweep);
        }
        let ticket = (lane, self.issued);
        self.issued += 1;
        self.tickets.insert(object.clone(), ticket);
        self.waiting.insert(ticket, (object, since));
        self.sweeping += usize::from(lane == Lane::Sweep);
    }

    /// The next object, in hand from now on.
    pub(super) fn start(&mut self) -> Option<R> {
        let (first, oldest) = (*self.waiting.keys().next()?, self.oldest()?);
        let ticket = if self.overtaken + 1 >= FAIR { oldest } else { first };
        self.overtaken = if ticket == oldest { 0 } else { self.overtaken + 1 };
        let (object, _) = self.waiting.remove(&ticket)?;
        self.sweeping -= usize::from(ticket.0 == Lane::Sweep);
        self.tickets.remove(&object);
        self.running.insert(object.clone(), None);
        Some(object)
    }

    /// Puts an object out of hand. Returns how urgent it has become meanwhile, if it is due again.
    pub(super) fn done(&mut self, object: &R) -> Option<Lane> {
        self.running.remove(object).flatten()
    }

    /// How many wait.
    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// How many of them wait for their turn in a sweep.
    pub(super) fn sweeping(&self) -> usize {
        self.sweeping
    }

    /// Since when the one waits that has waited longest, of those that are next in a lane.
    pub(super) fn waits_since(&self) -> Option<Moment> {
        self.heads().map(|(_, (_, since))| *since).min()
    }

    fn oldest(&self) -> Option<Ticket> {
        self.heads().map(|(ticket, _)| *ticket).min_by_key(|(_, issued)| *issued)
    }

    /// Who is next in each lane.
    fn heads(&self) -> impl Iterator<Item = (&Ticket, &(R, Moment))> {
        LANES.iter().filter_map(|lane| self.waiting.range((*lane, 0)..=(*lane, u64::MAX)).next())
    }
}

/// The most objects that a [`Recent`] remembers: what a kind changes in the time of a handover, with room to spare.
const MEMORY: usize = 1000;

/// The objects that changed last, each once. Forgets the oldest, so it stays small however long it goes on.
#[derive(Debug)]
pub(super) struct Recent<R> {
    order: BTreeMap<u64, R>,
    places: HashMap<R, u64>,
    noted: u64,
}

impl<R> Default for Recent<R> {
    fn default() -> Self {
        Self { order: BTreeMap::new(), places: HashMap::new(), noted: 0 }
    }
}

impl<R: Clone + Eq + Hash> Recent<R> {
    /// Notes that an object changed now.
    pub(super) fn note(&mut self, object: R) {
        if let Some(before) = self.places.insert(object.clone(), self.noted) {
            self.order.remove(&before);
        }
        self.order.insert(self.noted, object);
        self.noted += 1;
        if self.order.len() > MEMORY
            && let Some((_, oldest)) = self.order.pop_first()
        {
            self.places.remove(&oldest);
        }
    }

    /// All of them, the last one first: the last leader is the least likely to have reconciled it.
    pub(super) fn newest_first(self) -> impl Iterator<Item = R> {
        self.order.into_values().rev()
    }
}

#[cfg(test)]
mod tests {
    use std::iter::from_fn;

    use proptest::prelude::*;

    use super::*;

    const NOW: Moment = Moment::after_origin(std::time::Duration::ZERO);

    fn all<R: Clone + Eq + Hash>(queue: &mut Queue<R>) -> Vec<R> {
        from_fn(|| queue.start()).collect()
    }

    #[test]
    fn faster_lanes_go_first_and_in_a_lane_who_came_first() {
        let mut queue = Queue::default();
        for (lane, object) in [(Lane::Sweep, "e"), (Lane::Soon, "c"), (Lane::Changed, "a"), (Lane::Soon, "d")] {
            queue.add(lane, object, NOW);
        }
        queue.add(Lane::Changed, "b", NOW);
        assert_eq!(all(&mut queue), ["a", "b", "c", "d", "e"]);
    }

    #[test]
    fn an_object_waits_once_in_its_fastest_lane() {
        let mut queue = Queue::default();
        for lane in [Lane::Sweep, Lane::Changed, Lane::Soon, Lane::Changed] {
            queue.add(lane, "a", NOW);
            queue.add(Lane::Soon, "b", NOW);
        }
        assert_eq!(all(&mut queue), ["a", "b"]);
    }

    #[test]
    fn an_object_in_hand_is_due_again_only_when_it_is_done() {
        let mut queue = Queue::default();
        queue.add(Lane::Sweep, "a", NOW);
        assert_eq!(queue.start(), Some("a"));
        queue.add(Lane::Sweep, "a", NOW);
        queue.add(Lane::Changed, "a", NOW);
        queue.add(Lane::Soon, "b", NOW);
        assert_eq!(all(&mut queue), ["b"]);
        assert_eq!(queue.done(&"a"), Some(Lane::Changed), "the faster one");
        assert_eq!(queue.done(&"b"), None);
        assert_eq!(queue.start(), None, "when it waits again is not decided here");
    }

    #[test]
    fn the_longest_wait_is_told_and_a_faster_lane_does_not_make_it_shorter() {
        let at = |second| Moment::after_origin(std::time::Duration::from_secs(second));
        let mut queue = Queue::default();
        assert_eq!((queue.len(), queue.waits_since()), (0, None));
        queue.add(Lane::Sweep, "a", at(1));
        queue.add(Lane::Changed, "b", at(2));
        queue.add(Lane::Soon, "a", at(3));
        assert_eq!((queue.len(), queue.waits_since()), (2, Some(at(1))));
        assert_eq!(all(&mut queue), ["b", "a"]);
        assert_eq!((queue.len(), queue.waits_since()), (0, None));
    }

    #[test]
    fn changes_without_end_do_not_stop_the_sweep() {
        let mut queue = Queue::default();
        (0..10).for_each(|object| queue.add(Lane::Sweep, object, NOW));
        let starts = (100..300).map(|change| {
            queue.add(Lane::Changed, change, NOW);
            queue.start().unwrap()
        });
        let swept: Vec<_> = starts.enumerate().filter(|(_, object)| *object < 10).collect();
        let expected: Vec<_> = (0..10).map(|object| (object * FAIR as usize + 7, object as i32)).collect();
        assert_eq!(swept, expected);
    }

    #[test]
    fn the_last_change_is_remembered_first_and_the_oldest_forgotten() {
        let mut recent = Recent::default();
        for object in (0..MEMORY * 3).chain([MEMORY * 3 - 2]) {
            recent.note(object);
            assert!(recent.order.len() <= MEMORY && recent.places.len() == recent.order.len());
        }
        let remembered: Vec<_> = recent.newest_first().collect();
        assert_eq!(remembered[..3], [MEMORY * 3 - 2, MEMORY * 3 - 1, MEMORY * 3 - 3]);
        assert_eq!((remembered.len(), remembered.last()), (MEMORY, Some(&(MEMORY * 2))));
    }

    proptest! {
        /// Whatever is added comes out, never while it is in hand, and nothing else is left.
        #[test]
        fn nothing_is_lost_doubled_or_kept(steps in prop::collection::vec((0_usize..5, 0_u8..6), 0..200)) {
            let (mut queue, mut owed, mut hand) = (Queue::default(), Vec::new(), Vec::new());
            for (what, object) in steps {
                match what {
                    0..3 => {
                        queue.add(LANES[what], object, NOW);
                        owed.push(object);
                    }
                    3 => {
                        if let Some(started) = queue.start() {
                            prop_assert!(!hand.contains(&started) && owed.contains(&started));
                            owed.retain(|due| *due != started);
                            hand.push(started);
                        } else {
                            prop_assert!(owed.iter().all(|due| hand.contains(due)));
                        }
                    }
                    _ => {
                        if let Some(done) = hand.pop() {
                            let again = queue.done(&done);
                            prop_assert_eq!(again.is_some(), owed.contains(&done));
                            again.into_iter().for_each(|lane| queue.add(lane, done, NOW));
                        }
                    }
                }
            }
            for done in hand {
                queue.done(&done).into_iter().for_each(|lane| queue.add(lane, done, NOW));
            }
            let mut rest = all(&mut queue);
            rest.sort_unstable();
            owed.sort_unstable();
            owed.dedup();
            prop_assert_eq!(rest, owed);
            prop_assert!(queue.waiting.is_empty() && queue.tickets.is_empty() && queue.sweeping == 0);
        }
    }
}
