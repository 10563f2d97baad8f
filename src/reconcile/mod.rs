//! What the kinds share: controllers, conditions, server-side apply, events.
