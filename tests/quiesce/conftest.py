"""The stand-in agent, for all tests here."""

from tests.quiesce.agent_stand_in import agent

__all__ = ["agent"]
