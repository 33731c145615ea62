"""Rates of activities that share link classes max-min fairly: one alone, a few by progressive filling, many with numpy.

What a set of activities gets depends on their links, caps and stretches alone, and is remembered by these: a pipeline's
micro-batches meet on the same links again and again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from colossim.maxmin import max_min

if TYPE_CHECKING:
    from colossim.engine.network import Activity

#: Components with more activities than this are filled with numpy.
_CROWD = 40
#: Fillings remembered at once.
_REMEMBERED = 16384


class Rates:
    """capacity: bytes/s of one link of each class; grows with the network's links."""

    def __init__(self, capacity: list[float]) -> None:
        self.capacity = capacity
        #: rates of components, by what their activities are like; links are told by their numbers here
        self._filled: dict[tuple[tuple[int, float, float], ...], list[float]] = {}
        #: by id, which they keep while they stand here
        self._places: dict[int, tuple[int, Any]] = {}

    def of(self, component: list[Activity]) -> list[float]:
        """bytes/s an edge of activities that share links, directly or by others. May put them in an order of its own."""
        if len(component) == 1:
            return [self.alone(component[0])]
        return self._recall(component) if len(component) <= _CROWD else self._fill_crowd(component)

    def alone(self, activity: Activity) -> float:
        """bytes/s an edge with its links to itself."""
        stretch = activity.stretch
        rate = activity.cap / stretch
        for link, weight in activity.links:
            fair = self.capacity[link] / (weight * stretch)
            if fair < rate:
                rate = fair
        return rate

    def _recall(self, component: list[Activity]) -> list[float]:
        """The rates of `_fill`, which depend on nothing but the key here. Puts the component in an order of its own."""
        if len(self._filled) >= _REMEMBERED:
            self._filled.clear()
            self._places.clear()
        places = self._places
        placed: list[tuple[int, float, float, int]] = []
        for activity in component:
            links = activity.links
            place = places.get(id(links))
            if place is None:
                place = places[id(links)] = len(places), links
            placed.append((place[0], activity.cap, activity.stretch, len(placed)))
        placed.sort()
        component[:] = [component[which] for *_, which in placed]
        key = tuple([item[:3] for item in placed])
        found = self._filled.get(key)
        if found is None:
            found = self._filled[key] = self._fill(component)
        return found

    def _fill(self, component: list[Activity]) -> list[float]:
        """Progressive filling: raise all rates together; what saturates, or meets its own cap, stands still."""
        rate: dict[Activity, float] = {}
        weights: dict[int, float] = {}
        spent: dict[int, float] = {}
        for activity in component:
            for link, weight in activity.links:
                weights[link] = weights.get(link, 0.0) + weight * activity.stretch
                spent[link] = 0.0
        running = list(component)
        while running:
            level = min(activity.cap / activity.stretch for activity in running)
            tight = -1
            for link, weight in weights.items():
                if weight > 0:
                    fair = (self.capacity[link] - spent[link]) / weight
                    if fair < level:
                        level, tight = fair, link
            level = max(level, 0.0)
            limit = level * (1 + 1e-12)
            saturated = {
                link
                for link, weight in weights.items()
                if weight > 0 and (self.capacity[link] - spent[link]) / weight <= limit
            }
            if tight >= 0:
                saturated.add(tight)
            still = []
            for activity in running:
                if activity.cap / activity.stretch <= limit or any(link in saturated for link, _ in activity.links):
                    rate[activity] = level
                    for link, weight in activity.links:
                        spent[link] += weight * activity.stretch * level
                        weights[link] -= weight * activity.stretch
                else:
                    still.append(activity)
            for link in saturated:
                weights[link] = 0.0
            running = still
        return [rate[activity] for activity in component]

    def _fill_crowd(self, component: list[Activity]) -> list[float]:
        """The same filling on arrays, for components of many activities."""
        rows = [
            (i, link, weight * activity.stretch)
            for i, activity in enumerate(component)
            for link, weight in activity.links
        ]
        who = np.array([row[0] for row in rows])
        links, where = np.unique(np.array([row[1] for row in rows]), return_inverse=True)
        weight = np.array([row[2] for row in rows])
        left = np.array([self.capacity[link] for link in links])
        own = np.array([activity.cap / activity.stretch for activity in component])
        return list(max_min(who, where, weight, left, own))
