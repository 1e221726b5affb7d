"""What a student learns from a teacher."""

from torch import Tensor
from torch.nn import functional


def distillation_loss(
    student: Tensor, teacher: Tensor, labels: Tensor | None = None, *, temperature: float = 2.0, weight: float = 0.9
) -> Tensor:
    """How far the student's answers are from the teacher's, both softened, and from the labels where there are any.

    student, teacher: logits [..., classes]; no gradient goes to the teacher. labels: int64 [...]. The loss is

        weight T^2 KL(softmax(teacher / T) || softmax(student / T)) + (1 - weight) cross_entropy(student, labels),

    a mean over all but the last dimension; without labels the first term alone, with weight 1.
    Raises ValueError for shapes that differ, a temperature not above 0 or a weight outside 0 to 1.
    Source: Hinton, Vinyals and Dean, 2015; T^2 keeps the gradient's size, whatever the temperature.
    """
    if student.shape != teacher.shape or student.ndim < 2:
        shapes = f"{list(student.shape)} and {list(teacher.shape)}"
        raise ValueError(f"the logits have shapes {shapes}; expected the same [..., classes]")
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}; expected a number above 0")
    if not 0 <= weight <= 1:
        raise ValueError(f"weight is {weight}; expected a number from 0 to 1")
    classes = student.shape[-1]
    found = functional.log_softmax(student / temperature, -1).reshape(-1, classes)
    wanted = functional.log_softmax(teacher.detach() / temperature, -1).reshape(-1, classes)
    soft = functional.kl_div(found, wanted, reduction="batchmean", log_target=True) * temperature**2
    if labels is None:
        return soft
    hard = functional.cross_entropy(student.reshape(-1, classes), labels.reshape(-1))
    return weight * soft + (1 - weight) * hard
